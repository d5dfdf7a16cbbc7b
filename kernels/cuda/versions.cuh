// Inputs: a batch's lengths, the number of each sequence's first token, and, where an output needs them, sums over the
// sequences before. Outputs: int32 arrays, one value a token or a sequence. Versions, 256 threads a block:
//   linear  a thread a token, walks from the first sequence to its own: what this project was founded on
//   binary  a thread a token; a warp searches its first token's sequence together, keeps where that and the 31 after it
//           begin in its lanes, and each lane searches these
//   rows    a warp a sequence, nothing to search: many short sequences
//   tile    a warp for 128 to 1,024 tokens, four a thread stored as one, whose lanes hold 32 sequences at a time: many
//           tokens
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
// The quads of a thread of a tile. Few tokens want many warps, many tokens less searching, of which nine outputs' stores
// hide more (H200).
constexpr int kOneStep = 1;
constexpr int kFewSteps = 2;
constexpr int ManySteps(bool first_two) { return first_two ? 8 : 4; }
// So many are as many blocks of one step as may each make the sums for itself.
constexpr int32_t kSomeTokens = 264 * kThreads * kTokensAThread;
constexpr int32_t kManyTokens = 2 << 20;

__host__ __device__ constexpr int TileSteps(const BatchSize& size) {
  if (size.num_tokens < kSomeTokens) return kOneStep;
  return size.num_tokens < kManyTokens ? kFewSteps : ManySteps(size.first_two);
}

// The last sequence of the range that begins at or before t; its first one does.
template <typename Before>
__device__ __forceinline__ int32_t LastNotAfter(const Batch<Before>& batch, const Range& range, int32_t t) {
  int32_t low = range.low;
  int32_t high = range.high;
  while (high - low > 1) {
    const int32_t middle = low + (high - low) / 2;
    if (batch.FirstTokenOf(middle) <= t) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// The same by a whole warp, 32 probes a step; or, sooner, one that is less than kNear before it.
template <int32_t kNear = 1, typename Before>
__device__ __forceinline__ int32_t WarpLastNotAfter(const Batch<Before>& batch, const Range& range, int32_t t) {
  const int32_t lane = threadIdx.x % kWarp;
  int32_t low = range.low;
  int32_t high = range.high;
  while (high - low > kNear) {
    const int32_t step = (high - low + kWarp - 1) / kWarp;
    const int32_t probe = low + lane * step;
    const unsigned not_after = __ballot_sync(~0u, probe < high && batch.FirstTokenOf(probe) <= t);
    low += (__popc(not_after) - 1) * step;
    high = min(low + step, high);
  }
  return low;
}

// The last lane whose value, rising from lane to lane, is at most t; lane 0's is.
__device__ __forceinline__ int32_t LastLaneNotAfter(int32_t value, int32_t t) {
  int32_t found = 0;
  for (int32_t step = kWarp / 2; step > 0; step /= 2) {
    if (__shfl_sync(~0u, value, found + step) <= t) found += step;
  }
  return found;
}

// For each lane of a warp the last sequence that begins at or before its t, which rises from lane to lane; the first
// lane's is not before `low`.
template <typename Before>
__device__ __forceinline__ int32_t LanesLastNotAfter(const Batch<Before>& batch, int32_t low, int32_t t) {
  const int32_t num_sequences = batch.size.num_sequences;
  const int32_t mine = low + static_cast<int32_t>(threadIdx.x) % kWarp;
  const int32_t b = low + LastLaneNotAfter(mine < num_sequences ? batch.FirstTokenOf(mine) : INT32_MAX, t);
  const int32_t next = low + kWarp;
  if (b + 1 < next || next >= num_sequences || batch.FirstTokenOf(next) > t) return b;
  return LastNotAfter(batch, {next, num_sequences}, t);
}

// 32 sequences that follow each other, or as many as there are, a lane of a warp each: read at once and once, where each
// lane's own would be waited for at each of its steps.
template <typename Before>
class Window {
 public:
  __device__ __forceinline__ Window(const Batch<Before>& batch, int32_t low)
      : row_(batch, min(low + Lane(), batch.size.num_sequences - 1)), more_(low + kWarp < batch.size.num_sequences) {
    if (low + Lane() >= batch.size.num_sequences) row_.first_token = INT32_MAX;
  }

  // The lane of the last sequence that begins at or before t, which rises from lane to lane and not from before the
  // first sequence.
  __device__ __forceinline__ int32_t Find(int32_t t) const { return LastLaneNotAfter(row_.first_token, t); }
  // Whether sequences after the window may begin at or before the last lane's t too.
  __device__ __forceinline__ bool Ends(int32_t found) const {
    return more_ && __shfl_sync(~0u, found, kWarp - 1) == kWarp - 1;
  }
  __device__ __forceinline__ Row At(const Batch<Before>& batch, int32_t lane) const {
    Row row = row_;
    row.b = __shfl_sync(~0u, row.b, lane);
    row.first_token = __shfl_sync(~0u, row.first_token, lane);
    row.q = __shfl_sync(~0u, row.q, lane);
    row.s = __shfl_sync(~0u, row.s, lane);
    row.before.k = __shfl_sync(~0u, row.before.k, lane);
    row.before.nsa = __shfl_sync(~0u, row.before.nsa, lane);
    if (batch.arrays.request_of != nullptr) {
      row.request = reinterpret_cast<const DeviceRequest*>(
          __shfl_sync(~0u, reinterpret_cast<unsigned long long>(row.request), lane));
    }
    return row;
  }

 private:
  static __device__ __forceinline__ int32_t Lane() { return static_cast<int32_t>(threadIdx.x) % kWarp; }

  Row row_;
  bool more_;
};

template <bool kFirstTwo, typename Before>
__device__ __forceinline__ void WriteTokenOf(const Batch<Before>& batch, int32_t b, int32_t t) {
  const Row row(batch, b);
  const int32_t i = t - row.first_token;
  if (i < row.q) WriteToken<kFirstTwo>(row, i);
}

struct Linear {
  static constexpr Kernel kKernel = Kernel::kLinear;
  template <bool kFirstTwo, typename Before>
  static __device__ __forceinline__ void Write(const Batch<Before>& batch) {
    const int32_t t = blockIdx.x * kThreads + threadIdx.x;
    if (t >= batch.size.num_tokens || batch.size.num_sequences == 0) return;
    int32_t b = 0;
    while (b + 1 < batch.size.num_sequences && batch.FirstTokenOf(b + 1) <= t) ++b;
    WriteTokenOf<kFirstTwo>(batch, b, t);
  }
};

struct Binary {
  static constexpr Kernel kKernel = Kernel::kBinary;
  template <bool kFirstTwo, typename Before>
  static __device__ __forceinline__ void Write(const Batch<Before>& batch) {
    constexpr int32_t kFewSequences = 4;
    const int32_t t = blockIdx.x * kThreads + threadIdx.x;
    const int32_t first = t - threadIdx.x % kWarp;
    const int32_t end = batch.size.num_tokens;
    const int32_t num_sequences = batch.size.num_sequences;
    if (first >= end || num_sequences == 0) return;
    int32_t b = 0;
    if (num_sequences <= kFewSequences) {
      b = LastNotAfter(batch, {0, num_sequences}, min(t, end));
    } else {
      const int32_t low = num_sequences <= kWarp ? 0 : WarpLastNotAfter(batch, batch.RangeOf(first), first);
      b = LanesLastNotAfter(batch, low, min(t, end));
    }
    if (t < end) WriteTokenOf<kFirstTwo>(batch, b, t);
  }
};

struct Rows {
  static constexpr Kernel kKernel = Kernel::kRows;
  template <bool kFirstTwo, typename Before>
  static __device__ __forceinline__ void Write(const Batch<Before>& batch) {
    const int32_t lane = threadIdx.x % kWarp;
    const int32_t warps = gridDim.x * kWarps;
    for (int32_t b = blockIdx.x * kWarps + threadIdx.x / kWarp; b < batch.size.num_sequences; b += warps) {
      const Row row(batch, b);
      const int32_t end = min(row.q, max(batch.size.num_tokens - row.first_token, 0));
      for (int32_t i = lane; i < end; i += kWarp) WriteToken<kFirstTwo>(row, i);
    }
  }
};

// The values of four tokens that follow each other in one request, or of as many as there are.
template <bool kFirstTwo>
class Quad {
 public:
  // Of t and those after it, all of `row`, whose last one may be the last of all.
  __device__ __forceinline__ Quad(const Row& row, int32_t t)
      : request_(row.request), index_(int64_t{t} - row.request->first_token) {
    static_assert(kFirstTwo, "is_last_ is of other outputs");
#pragma unroll
    for (int32_t j = 0; j < kTokensAThread; ++j) Take(row, t + j - row.first_token, j);
  }

  // Of t and those after it, before `end`; `row` is the last sequence that begins at or before t. `next` is the one
  // after it where `has_next`, else that is looked up.
  template <typename Before>
  __device__ __forceinline__ Quad(const Batch<Before>& batch, Row row, const Row& next, bool has_next, int32_t t,
                                  int32_t end)
      : request_(row.request), index_(int64_t{t} - row.request->first_token) {
#pragma unroll
    for (int32_t j = 0; j < kTokensAThread; ++j) {
      int32_t i = t + j - row.first_token;
      if (i >= row.q) {
        if (has_next && next.first_token <= t + j) {
          row = next;
          has_next = false;
          i = t + j - row.first_token;
        }
        if (i >= row.q) {
          int32_t b = row.b;
          while (b + 1 < batch.size.num_sequences && batch.FirstTokenOf(b + 1) <= t + j) ++b;
          if (b != row.b) row = Row(batch, b);
          has_next = false;
          i = t + j - row.first_token;
        }
      }
      if (i >= row.q || t + j >= end) break;
      Take(row, i, j);
    }
    if (t + count_ >= end) is_last_ = true;
  }

  __device__ __forceinline__ void Write() const {
    const uint32_t k = request_->nsa_index_topk;
    Put4(Output::kSeqlensExpanded, expanded_);
    Put4(Output::kNsaCacheSeqlens,
         {min(expanded_.v[0], k), min(expanded_.v[1], k), min(expanded_.v[2], k), min(expanded_.v[3], k)});
    if constexpr (!kFirstTwo) {
      Put4(Output::kTokenToBatchIdx, sequence_);
      Put4(Output::kPositions, position_);
      Put4(Output::kKs, ks_);
      Put4(Output::kKe, {ks_.v[0] + expanded_.v[0], ks_.v[1] + expanded_.v[1], ks_.v[2] + expanded_.v[2],
                         ks_.v[3] + expanded_.v[3]});
      if (count_ > 0 && OutputOf(*request_, Output::kNsaCuSeqlensK) != nullptr) {
        // The sums before each of the four: these begin at an index that four values can be stored at. The sum after
        // them is the next four's first, where the last one's sequence goes on.
        Put4(Output::kNsaCuSeqlensK, nsa_before_);
        if (is_last_) Put(*request_, Output::kNsaCuSeqlensK, index_ + count_, nsa_after_);
      }
    }
  }

 private:
  struct Values {
    uint32_t v[kTokensAThread];
  };

  __device__ __forceinline__ void Take(const Row& row, int32_t i, int32_t j) {
    expanded_.v[j] = row.Expanded(i);
    count_ = j + 1;
    if constexpr (!kFirstTwo) {
      is_last_ = i + 1 == row.q;
      sequence_.v[j] = row.b - request_->first_sequence;
      position_.v[j] = row.Position(i);
      ks_.v[j] = row.before.k;
      if (OutputOf(*request_, Output::kNsaCuSeqlensK) == nullptr) return;
      nsa_before_.v[j] = j > 0 && i > 0 ? nsa_after_ : row.NsaSumTo(i);
      nsa_after_ = nsa_before_.v[j] + min(expanded_.v[j], static_cast<uint32_t>(request_->nsa_index_topk));
    }
  }

  __device__ __forceinline__ void Put4(Output output, const Values& values) const {
    int32_t* out = OutputOf(*request_, output);
    if (out == nullptr) return;
    if (count_ == kTokensAThread && reinterpret_cast<uintptr_t>(out) % sizeof values == 0) {
      *reinterpret_cast<uint4*>(out + index_) = {values.v[0], values.v[1], values.v[2], values.v[3]};
      return;
    }
#pragma unroll
    for (int32_t j = 0; j < kTokensAThread; ++j) {
      if (j < count_) out[index_ + j] = static_cast<int32_t>(values.v[j]);
    }
  }

  const DeviceRequest* request_;
  int64_t index_;  // of the first one, in the request's arrays
  int32_t count_ = 0;
  bool is_last_ = false;  // of its sequence, or of all
  Values expanded_ = {};
  Values sequence_ = {};
  Values position_ = {};
  Values ks_ = {};
  Values nsa_before_ = {};
  uint32_t nsa_after_ = 0;
};

struct Tile {
  static constexpr Kernel kKernel = Kernel::kTile;
  template <bool kFirstTwo, typename Before>
  static __device__ __forceinline__ void Write(const Batch<Before>& batch) {
    constexpr int kManySteps = ManySteps(kFirstTwo);
    switch (TileSteps(batch.size)) {
      case kManySteps:
        return WriteSteps<kFirstTwo, kManySteps>(batch);
      case kFewSteps:
        return WriteSteps<kFirstTwo, kFewSteps>(batch);
      default:
        return WriteSteps<kFirstTwo, kOneStep>(batch);
    }
  }

 private:
  template <bool kFirstTwo, int kSteps, typename Before>
  static __device__ __forceinline__ void WriteSteps(const Batch<Before>& batch) {
    constexpr int32_t kStepTokens = kWarp * kTokensAThread;
    const int32_t num_sequences = batch.size.num_sequences;
    const int32_t lane = threadIdx.x % kWarp;
    const int64_t begin = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp) * kSteps * kStepTokens;
    const int32_t end = batch.size.num_tokens;
    if (begin >= end || num_sequences == 0) return;
    const auto first_token = static_cast<int32_t>(begin);
    int32_t low = num_sequences <= kWarp ? 0 : WarpLastNotAfter<kWarp>(batch, batch.RangeOf(first_token), first_token);
    Window<Before> window(batch, low);
    for (int32_t step = 0; step < kSteps; ++step) {
      const auto t = static_cast<int32_t>(Min(begin + step * kStepTokens + lane * kTokensAThread, end));
      int32_t found = window.Find(t);
      if (window.Ends(found)) {
        low += __shfl_sync(~0u, found, 0);
        window = Window<Before>(batch, low);
        found = window.Find(t);
      }
      if (window.Ends(found)) {
        // Of sequences so short no window holds a step's.
        const int32_t b = LanesLastNotAfter(batch, low, t);
        if (t < end) WriteQuad<kFirstTwo>(batch, Row(batch, b), t);
        low = __shfl_sync(~0u, b, kWarp - 1);
        window = Window<Before>(batch, low);
        continue;
      }
      WriteQuads<kFirstTwo>(batch, window, found, t);
    }
  }

  // Where two sequences meet the second is not loaded either, of the first two outputs: of all of them the rows to be
  // kept for that cost more warps than it saves (H200).
  template <bool kFirstTwo, typename Before>
  static __device__ __forceinline__ void WriteQuads(const Batch<Before>& batch, const Window<Before>& window,
                                                    int32_t found, int32_t t) {
    const int32_t end = batch.size.num_tokens;
    const Row row = window.At(batch, found);
    if constexpr (kFirstTwo) {
      const int32_t left = min(row.q - (t - row.first_token), end - t);
      if (__all_sync(~0u, left >= kTokensAThread)) return Quad<kFirstTwo>(row, t).Write();
      const Row next = window.At(batch, (found + 1) % kWarp);
      if (t < end) Quad<kFirstTwo>(batch, row, next, found + 1 < kWarp, t, end).Write();
    } else if (t < end) {
      WriteQuad<kFirstTwo>(batch, row, t);
    }
  }

  template <bool kFirstTwo, typename Before>
  static __device__ __forceinline__ void WriteQuad(const Batch<Before>& batch, const Row& row, int32_t t) {
    Quad<kFirstTwo>(batch, row, row, /*has_next=*/false, t, batch.size.num_tokens).Write();
  }
};

__device__ __forceinline__ void SetDone(const DoneFlags& done) {
  if (done.flags == nullptr) return;
  __syncthreads();
  if (threadIdx.x != 0) return;
  // Each release is of what the whole block has written, and the last block's of what the others have.
  uint32_t flag = blockIdx.x;
  if (done.ended != nullptr) {
    const ::cuda::atomic_ref<uint32_t, ::cuda::thread_scope_device> ended(*done.ended);
    if (ended.fetch_add(1, ::cuda::memory_order_acq_rel) + 1 != gridDim.x) return;
    ended.store(0, ::cuda::memory_order_relaxed);
    flag = 0;
  }
  const ::cuda::atomic_ref<uint64_t, ::cuda::thread_scope_system> host(done.flags[flag]);
  host.store(done.value, ::cuda::memory_order_release);
}

template <typename Version, bool kFirstTwo, typename Source>
__global__ void __launch_bounds__(kThreads) Expand(const __grid_constant__ Source source, DoneFlags done) {
  const auto batch = BatchOf<kFirstTwo>(source);
  Version::template Write<kFirstTwo>(batch);
  if constexpr (!kFirstTwo) WriteSums(batch);
  SetDone(done);
}

// The one of `Versions` that is `kernel`; null when none is.
template <typename Source, typename... Versions>
const void* FunctionOf(Kernel kernel, bool first_two) {
  const void* function = nullptr;
  const auto look = [&]<typename Version>(const Version&) {
    if (Version::kKernel != kernel) return;
    function = first_two ? reinterpret_cast<const void*>(&Expand<Version, true, Source>)
                         : reinterpret_cast<const void*>(&Expand<Version, false, Source>);
  };
  (look(Versions()), ...);
  return function;
}

struct LaunchOptions {
  bool early = false;       // before the stream's last kernel is over; the kernel waits for it itself
  size_t shared_bytes = 0;  // of a block's memory, beside what its kernel declares
};

template <typename Source, typename... Versions>
cudaError_t Launch(Kernel kernel, const BatchSize& size, const void* source, DoneFlags done, cudaStream_t stream,
                   const LaunchOptions& options = {}) {
  const void* function = FunctionOf<Source, Versions...>(kernel, size.first_two);
  if (function == nullptr) return cudaErrorInvalidValue;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(NumBlocks(kernel, size)));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.dynamicSmemBytes = options.shared_bytes;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = options.early ? 1 : 0;
  void* parameters[] = {const_cast<void*>(source), &done};
  return cudaLaunchKernelExC(&config, function, parameters);
}

}  // namespace nsa::metadata::kernels::cuda
