// Kernels over batches that the host has laid out.

#include <algorithm>
#include <cstddef>
#include <optional>
#include <type_traits>
#include <utility>

#include "kernels/cuda/launch.h"
#include "kernels/cuda/versions.cuh"

namespace nsa::metadata::kernels::cuda {
namespace {

// Sources of a batch, kernel parameters. Base is where its layout begins, asked once by all threads of a block.

// Parameters are constants: what the threads of a warp read of them at different places is read one place after
// another. Of more than this a block makes a copy in its shared memory first (H100: of 32 requests' nine outputs 4 us
// less).
constexpr size_t kMostConstantBytes = 1'264;

// Memory that is read as any other, not as constants.
__device__ __forceinline__ const unsigned char* AsMemory(const unsigned char* parameter) {
  const unsigned char* memory = nullptr;
  asm("mov.u64 %0, %1;" : "=l"(memory) : "l"(parameter));  // the compiler no longer knows whose it is
  return memory;
}

template <size_t kBytes>
struct Inline {
  using Piece = int4;

  BatchSize size;
  alignas(sizeof(Piece)) unsigned char data[kBytes];

  __device__ __forceinline__ const unsigned char* Base() const {
    if constexpr (kBytes <= kMostConstantBytes) {
      return data;
    } else {
      static_assert(kBytes % sizeof(Piece) == 0);
      __shared__ alignas(sizeof(Piece)) unsigned char copy[kBytes];
      const auto bytes = static_cast<int32_t>(BatchLayout(size).bytes);
      const unsigned char* const memory = AsMemory(data);
      for (int32_t i = threadIdx.x * sizeof(Piece); i < bytes; i += kThreads * sizeof(Piece)) {
        *reinterpret_cast<Piece*>(copy + i) = *reinterpret_cast<const Piece*>(memory + i);
      }
      __syncthreads();
      return copy;
    }
  }
};

struct Staged {
  BatchSize size;
  const unsigned char* data;
  __device__ __forceinline__ const unsigned char* Base() const { return data; }
};

template <typename T>
__device__ __forceinline__ const T* At(const unsigned char* base, size_t offset) {
  return reinterpret_cast<const T*>(base + offset);
}

// FlatSums' functions, over what the host has laid out.
struct LaidOutSums {
  const int32_t* first_tokens;    // [num_sequences + 1]
  const SumsBefore* sums_before;  // null where no output needs them

  __device__ __forceinline__ int32_t FirstTokenOf(int32_t b) const { return first_tokens[b]; }
  __device__ __forceinline__ int32_t TokensOf(int32_t b, const DeviceRequest& request) const {
    return min(first_tokens[b + 1], request.end_token) - first_tokens[b];
  }
  __device__ __forceinline__ SumsBefore SumsBeforeOf(int32_t b) const {
    return sums_before == nullptr ? SumsBefore{} : sums_before[b];
  }
};

template <bool kFirstTwo, typename Source>
__device__ __forceinline__ Batch<LaidOutSums> BatchOf(const Source& source) {
  const BatchLayout layout(source.size);
  const unsigned char* base = source.Base();
  const bool one_request = source.size.num_requests == 1;
  return {.size = source.size,
          .arrays = {.requests = At<DeviceRequest>(base, layout.requests),
                     .request_of = one_request ? nullptr : At<RequestIndex>(base, layout.request_of),
                     .seq_lens = At<int32_t>(base, layout.seq_lens)},
          .before = {.first_tokens = At<int32_t>(base, layout.first_tokens),
                     .sums_before = kFirstTwo ? nullptr : At<SumsBefore>(base, layout.sums_before)}};
}

// A launch copies as much as its kernel's parameters may hold, used or not: so those that the plan sends small batches
// to are there in several sizes, two that are read as constants and one that still costs a launch next to nothing.
using SmallSizes = std::index_sequence<624, kMostConstantBytes, std::min(kMostInlineBytesOfAll, kMostInlineBytes)>;

template <size_t... kBytes>
cudaError_t LaunchSmallest(Kernel kernel, const InlineBatch& batch, const DoneFlags& done, cudaStream_t stream,
                           std::index_sequence<kBytes...>) {
  const size_t bytes = BatchLayout(batch.size).bytes;
  if (bytes > kMostInlineBytes) return cudaErrorInvalidValue;
  std::optional<cudaError_t> error;
  const auto launch_if_fits = [&]<size_t kRoom>(std::integral_constant<size_t, kRoom>) {
    static_assert(offsetof(InlineBatch, data) == offsetof(Inline<kRoom>, data));
    if (error || bytes > kRoom) return;
    error = Launch<Inline<kRoom>, Binary, Rows>(kernel, batch.size, &batch, done, stream);
  };
  if (kernel == Kernel::kBinary || kernel == Kernel::kRows) {
    (launch_if_fits(std::integral_constant<size_t, kBytes>()), ...);
  }
  if (error) return *error;
  return Launch<Inline<kMostInlineBytes>, Linear, Binary, Rows, Tile>(kernel, batch.size, &batch, done, stream);
}

__global__ void ArchitectureProbe() {}

}  // namespace

int64_t NumBlocks(Kernel kernel, const BatchSize& size) {
  // Blocks that outnumber these find their next sequence themselves.
  constexpr int64_t kMostRowBlocks = 4096;
  const auto blocks_of = [](int64_t count, int64_t a_block) {
    return count == 0 ? 1 : (count + a_block - 1) / a_block;
  };
  switch (kernel) {
    case Kernel::kRows:
      return std::min(blocks_of(size.num_sequences, kWarps), kMostRowBlocks);
    case Kernel::kTile:
      return blocks_of(size.num_tokens, int64_t{kThreads} * kTokensAThread * TileSteps(size));
    default:
      return blocks_of(size.num_tokens, kThreads);
  }
}

cudaError_t LaunchInline(Kernel kernel, const InlineBatch& batch, const DoneFlags& done, cudaStream_t stream) {
  return LaunchSmallest(kernel, batch, done, stream, SmallSizes());
}

cudaError_t LaunchStaged(Kernel kernel, const BatchSize& size, const void* data, const DoneFlags& done,
                         cudaStream_t stream) {
  const Staged source = {.size = size, .data = static_cast<const unsigned char*>(data)};
  return Launch<Staged, Linear, Binary, Rows, Tile>(kernel, size, &source, done, stream);
}

cudaError_t GetRunningCode(RunningCode* code) {
  cudaFuncAttributes attributes = {};
  const cudaError_t error = cudaFuncGetAttributes(&attributes, ArchitectureProbe);
  // Each architecture's machine code is made of its own PTX.
  code->compiled_from = attributes.ptxVersion;
  code->machine_code = attributes.binaryVersion == attributes.ptxVersion;
  return error;
}

}  // namespace nsa::metadata::kernels::cuda
