// Inputs: a batch's lengths, the number of each sequence's first token, and, where an output needs them, sums over the
// sequences before. Outputs: int32 arrays, one value a token or a sequence. Versions, 256 threads a block:
//   linear  a thread a token, walks from the first sequence to its own: what this project was founded on
//   binary  a thread a token, searches the first tokens: log2(num_sequences) steps
//   rows    a warp a sequence, nothing to search: many short sequences
//   tile    4,096 tokens a block, which searches its first and last sequence, and each of its threads between them, for
//           four tokens at a time that are stored as one: many tokens

//
// A kernel is one of these over a source of the batch, a kernel parameter, which BatchOf<kFirstTwo> makes a Batch of.
#pragma once

#include <cuda_runtime.h>

#include <cuda/atomic>

#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/launch.h"

namespace nsa::metadata::kernels::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
constexpr int kTileRounds = 4;
constexpr int kTileTokens = kThreads * kTokensAThread * kTileRounds;

// The last sequence of [low, high) that begins at or before t; the one at `low` does.
__device__ __forceinline__ int32_t LastNotAfter(const int32_t* first_tokens, int32_t low, int32_t high, int32_t t) {
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (first_tokens[middle] <= t) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// The same by a whole warp, 32 probes a step.
__device__ __forceinline__ int32_t WarpLastNotAfter(const int32_t* first_tokens, int32_t num_sequences, int32_t t) {
  const int32_t lane = threadIdx.x % kWarp;
  int32_t low = 0;
  int32_t high = num_sequences;
  while (high - low > 1) {
    const int32_t step = (high - low + kWarp - 1) / kWarp;
    const int32_t probe = low + lane * step;
    const unsigned not_after = __ballot_sync(~0u, probe < high && first_tokens[probe] <= t);
    low += (__popc(not_after) - 1) * step;
    high = min(low + step, high);
  }
  return low;
}

template <bool kFirstTwo>
__device__ __forceinline__ void WriteTokenOf(const Batch& batch, int32_t b, int32_t t) {
  const Row row(batch, b);
  const int32_t i = t - row.first_token;
  if (i < row.q) WriteToken<kFirstTwo>(row, i);
}

struct Linear {
  template <bool kFirstTwo>
  static __device__ __forceinline__ void Write(const Batch& batch) {
    const int32_t t = blockIdx.x * kThreads + threadIdx.x;
    if (t >= batch.size.num_tokens || batch.size.num_sequences == 0) return;
    int32_t b = 0;
    while (b + 1 < batch.size.num_sequences && batch.arrays.first_tokens[b + 1] <= t) ++b;
    WriteTokenOf<kFirstTwo>(batch, b, t);
  }
};

struct Binary {
  template <bool kFirstTwo>
  static __device__ __forceinline__ void Write(const Batch& batch) {
    const int32_t t = blockIdx.x * kThreads + threadIdx.x;
    if (t >= batch.size.num_tokens || batch.size.num_sequences == 0) return;
    WriteTokenOf<kFirstTwo>(batch, LastNotAfter(batch.arrays.first_tokens, 0, batch.size.num_sequences, t), t);
  }
};

struct Rows {
  template <bool kFirstTwo>
  static __device__ __forceinline__ void Write(const Batch& batch) {
    const int32_t lane = threadIdx.x % kWarp;
    const int32_t warps = gridDim.x * kWarps;
    for (int32_t b = blockIdx.x * kWarps + threadIdx.x / kWarp; b < batch.size.num_sequences; b += warps) {
      const Row row(batch, b);
      const int32_t end = min(row.q, max(batch.size.num_tokens - row.first_token, 0));
      for (int32_t i = lane; i < end; i += kWarp) WriteToken<kFirstTwo>(row, i);
    }
  }
};

__device__ __forceinline__ void Put4(const DeviceRequest& request, Output output, int64_t index, uint4 values) {
  int32_t* out = OutputOf(request, output);
  if (out == nullptr) return;
  if (reinterpret_cast<uintptr_t>(out) % sizeof values == 0) {
    *reinterpret_cast<uint4*>(out + index) = values;
  } else {
    out[index] = values.x;
    out[index + 1] = values.y;
    out[index + 2] = values.z;
    out[index + 3] = values.w;
  }
}

__device__ __forceinline__ uint4 From(uint32_t first, uint32_t step) {
  return {first, first + step, first + 2 * step, first + 3 * step};
}

// Writes what belongs to tokens i to i + 3 of `row`.
template <bool kFirstTwo>
__device__ __forceinline__ void WriteFour(const Row& row, int32_t i) {
  const DeviceRequest& request = row.request;
  const int64_t t = int64_t{row.first_token} - request.first_token + i;
  const uint4 expanded = {static_cast<uint32_t>(row.Expanded(i)), static_cast<uint32_t>(row.Expanded(i + 1)),
                          static_cast<uint32_t>(row.Expanded(i + 2)), static_cast<uint32_t>(row.Expanded(i + 3))};
  const uint32_t k = request.nsa_index_topk;
  Put4(request, Output::kSeqlensExpanded, t, expanded);
  Put4(request, Output::kNsaCacheSeqlens, t,
       {min(expanded.x, k), min(expanded.y, k), min(expanded.z, k), min(expanded.w, k)});
  if constexpr (!kFirstTwo) {
    Put4(request, Output::kTokenToBatchIdx, t, From(row.b - request.first_sequence, 0));
    Put4(request, Output::kPositions, t, From(row.Position(i), 1));
    const uint32_t ks = row.before.k;
    Put4(request, Output::kKs, t, From(ks, 0));
    Put4(request, Output::kKe, t, {ks + expanded.x, ks + expanded.y, ks + expanded.z, ks + expanded.w});
    if (OutputOf(request, Output::kNsaCuSeqlensK) != nullptr) {
      // The sums before each of the four: that is what begins at an index which four values may be stored at.
      uint4 sums;
      sums.x = row.before.nsa + NsaSum(request.mode, k, row.q, row.s, i);
      sums.y = sums.x + min(expanded.x, k);
      sums.z = sums.y + min(expanded.y, k);
      sums.w = sums.z + min(expanded.z, k);
      Put4(request, Output::kNsaCuSeqlensK, t, sums);
      Put(request, Output::kNsaCuSeqlensK, t + 4, sums.w + min(expanded.w, k));
    }
  }
}

struct Tile {
  template <bool kFirstTwo>
  static __device__ __forceinline__ void Write(const Batch& batch) {
    __shared__ int32_t bounds[2];  // the tile's first and last sequence
    const int32_t* first_tokens = batch.arrays.first_tokens;
    const int32_t begin = blockIdx.x * kTileTokens;
    const int32_t end = batch.size.num_tokens - begin < kTileTokens ? batch.size.num_tokens : begin + kTileTokens;
    if (begin >= end || batch.size.num_sequences == 0) return;
    const int32_t warp = threadIdx.x / kWarp;
    if (warp < 2) {
      const int32_t found = WarpLastNotAfter(first_tokens, batch.size.num_sequences, warp == 0 ? begin : end - 1);
      if (threadIdx.x % kWarp == 0) bounds[warp] = found;
    }
    __syncthreads();
    for (int32_t round = 0; round < kTileRounds; ++round) {
      const int32_t t = begin + (round * kThreads + threadIdx.x) * kTokensAThread;
      if (t >= end) return;
      int32_t b = LastNotAfter(first_tokens, bounds[0], bounds[1] + 1, t);
      const Row row(batch, b);
      const int32_t i = t - row.first_token;
      if (i + kTokensAThread <= row.q && t + kTokensAThread <= end) {
        WriteFour<kFirstTwo>(row, i);
        continue;
      }
      for (int32_t token = t; token < min(t + kTokensAThread, end); ++token) {
        while (b < bounds[1] && first_tokens[b + 1] <= token) ++b;
        WriteTokenOf<kFirstTwo>(batch, b, token);
      }
    }
  }
};

template <typename Version, bool kFirstTwo, typename Source>
__global__ void __launch_bounds__(kThreads) Expand(const __grid_constant__ Source source, DoneFlags done) {
  const Batch batch = BatchOf<kFirstTwo>(source);
  Version::template Write<kFirstTwo>(batch);
  if constexpr (!kFirstTwo) WriteSums(batch);
  if (done.flags == nullptr) return;
  __syncthreads();
  // Releases what the whole block has written.
  if (threadIdx.x == 0) {
    const ::cuda::atomic_ref<uint64_t, ::cuda::thread_scope_system> flag(done.flags[blockIdx.x]);
    flag.store(done.value, ::cuda::memory_order_release);
  }
}

template <typename Version, typename Source>
const void* Function(bool first_two) {
  return first_two ? reinterpret_cast<const void*>(&Expand<Version, true, Source>)
                   : reinterpret_cast<const void*>(&Expand<Version, false, Source>);
}

template <typename Source>
cudaError_t Launch(Kernel kernel, const BatchSize& size, const void* source, DoneFlags done, cudaStream_t stream) {
  const void* function = nullptr;
  switch (kernel) {
    case Kernel::kLinear:
      function = Function<Linear, Source>(size.first_two);
      break;
    case Kernel::kBinary:
      function = Function<Binary, Source>(size.first_two);
      break;
    case Kernel::kRows:
      function = Function<Rows, Source>(size.first_two);
      break;
    case Kernel::kTile:
      function = Function<Tile, Source>(size.first_two);
      break;
    default:
      return cudaErrorInvalidValue;  // none of the device's
  }
  const dim3 blocks(static_cast<unsigned>(NumBlocks(kernel, size.num_sequences, size.num_tokens)));
  void* parameters[] = {const_cast<void*>(source), &done};
  return cudaLaunchKernel(function, blocks, dim3(kThreads), parameters, 0, stream);
}

}  // namespace nsa::metadata::kernels::cuda
