// Kernels over batches that the host has laid out.

#include <algorithm>
#include <cstddef>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/versions.cuh"

namespace nsa::metadata::kernels::cuda {
namespace {

// Sources of a batch, kernel parameters.

template <size_t kBytes>
struct Inline {
  BatchSize size;
  alignas(16) unsigned char data[kBytes];
  __device__ __forceinline__ const unsigned char* base() const { return data; }
};

struct Staged {
  BatchSize size;
  const unsigned char* data;
  __device__ __forceinline__ const unsigned char* base() const { return data; }
};

template <typename T>
__device__ __forceinline__ const T* At(const unsigned char* base, size_t offset) {
  return reinterpret_cast<const T*>(base + offset);
}

template <bool kFirstTwo, typename Source>
__device__ __forceinline__ Batch BatchOf(const Source& source) {
  const BatchLayout layout(source.size);
  const unsigned char* base = source.base();
  const bool one_request = source.size.num_requests == 1;
  return {.size = source.size,
          .arrays = {.requests = At<DeviceRequest>(base, layout.requests),
                     .request_of = one_request ? nullptr : At<int32_t>(base, layout.request_of),
                     .first_tokens = At<int32_t>(base, layout.first_tokens),
                     .extend_seq_lens = At<int32_t>(base, layout.extend_seq_lens),
                     .seq_lens = At<int32_t>(base, layout.seq_lens),
                     .sums_before = kFirstTwo ? nullptr : At<SumsBefore>(base, layout.sums_before)}};
}

__global__ void ArchitectureProbe() {}

}  // namespace

int64_t NumBlocks(Kernel kernel, int64_t num_sequences, int64_t num_tokens) {
  // Blocks that outnumber these find their next sequence themselves.
  constexpr int64_t kMostRowBlocks = 4096;
  const auto blocks_of = [](int64_t count, int64_t a_block) {
    return count == 0 ? 1 : (count + a_block - 1) / a_block;
  };
  switch (kernel) {
    case Kernel::kRows:
      return std::min(blocks_of(num_sequences, kWarps), kMostRowBlocks);
    case Kernel::kTile:
      return blocks_of(num_tokens, kTileTokens);
    default:
      return blocks_of(num_tokens, kThreads);
  }
}

cudaError_t LaunchInline(Kernel kernel, const InlineBatch& batch, const DoneFlags& done, cudaStream_t stream) {
  // A launch copies as much as its kernel's parameters may hold, used or not.
  constexpr size_t kFew = 1'008;
  constexpr size_t kSome = 4'032;
  static_assert(offsetof(InlineBatch, data) == offsetof(Inline<kFew>, data));
  const size_t bytes = BatchLayout(batch.size).bytes;
  if (bytes <= kFew) return Launch<Inline<kFew>>(kernel, batch.size, &batch, done, stream);
  if (bytes <= kSome) return Launch<Inline<kSome>>(kernel, batch.size, &batch, done, stream);
  if (bytes > kMostInlineBytes) return cudaErrorInvalidValue;
  return Launch<Inline<kMostInlineBytes>>(kernel, batch.size, &batch, done, stream);
}

cudaError_t LaunchStaged(Kernel kernel, const BatchSize& size, const void* data, const DoneFlags& done,
                         cudaStream_t stream) {
  const Staged source = {.size = size, .data = static_cast<const unsigned char*>(data)};
  return Launch<Staged>(kernel, size, &source, done, stream);
}

cudaError_t CompiledFrom(int* ptx_version) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, ArchitectureProbe);
  *ptx_version = attributes.ptxVersion;
  return error;
}

}  // namespace nsa::metadata::kernels::cuda
