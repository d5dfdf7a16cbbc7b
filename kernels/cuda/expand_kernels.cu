// Kernels over batches that the host has laid out.

#include <algorithm>
#include <cstddef>
#include <utility>

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
__device__ __forceinline__ Batch<FlatSums> BatchOf(const Source& source) {
  const BatchLayout layout(source.size);
  const unsigned char* base = source.base();
  const bool one_request = source.size.num_requests == 1;
  return {.size = source.size,
          .arrays = {.requests = At<DeviceRequest>(base, layout.requests),
                     .request_of = one_request ? nullptr : At<int32_t>(base, layout.request_of),
                     .extend_seq_lens = At<int32_t>(base, layout.extend_seq_lens),
                     .seq_lens = At<int32_t>(base, layout.seq_lens)},
          .before = {.first_tokens = At<int32_t>(base, layout.first_tokens),
                     .sums_before = kFirstTwo ? nullptr : At<SumsBefore>(base, layout.sums_before)}};
}

// A launch copies as much as its kernel's parameters may hold, used or not: so there are kernels for several sizes.
using InlineSizes = std::index_sequence<624, 1'264, 2'272, 3'232, kMostInlineBytes>;

template <size_t kBytes, size_t... kMore>
cudaError_t LaunchSmallest(Kernel kernel, size_t bytes, const InlineBatch& batch, const DoneFlags& done,
                           cudaStream_t stream, std::index_sequence<kBytes, kMore...>) {
  static_assert(offsetof(InlineBatch, data) == offsetof(Inline<kBytes>, data));
  if (bytes <= kBytes) return Launch<Inline<kBytes>>(kernel, batch.size, &batch, done, stream);
  if constexpr (sizeof...(kMore) > 0) {
    return LaunchSmallest(kernel, bytes, batch, done, stream, std::index_sequence<kMore...>());
  }
  return cudaErrorInvalidValue;
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
      return blocks_of(num_tokens, kWarps * kTileTokens);
    default:
      return blocks_of(num_tokens, kThreads);
  }
}

cudaError_t LaunchInline(Kernel kernel, const InlineBatch& batch, const DoneFlags& done, cudaStream_t stream) {
  const size_t bytes = BatchLayout(batch.size).bytes;
  return LaunchSmallest(kernel, bytes, batch, done, stream, InlineSizes());
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
