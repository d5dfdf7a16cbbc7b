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
#include <type_traits>

#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/launch.h"

namespace nsa::metadata::kernels::cuda {

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kWarps = kThreads / kWarp;
// The quads of a thread of a tile. Few tokens want many warps; many want less searching, of which nine outputs' stores
// hide more, until they are more than the card's warps take at once: those that come later search while others store
// (H200).
constexpr int kOneStep = 1;
constexpr int kFewSteps = 2;
constexpr int ManySteps(bool first_two) { return first_two ? 8 : 4; }
constexpr int MostSteps(bool first_two) { return first_two ? 5 : 3; }
// So many are as many blocks of one step as may each make the sums for itself.
constexpr int32_t kSomeTokens = 264 * kThreads * kTokensAThread;
constexpr int32_t kManyTokens = 2 << 20;
constexpr int32_t kMostTokens = 8 << 20;

__host__ __device__ constexpr int TileSteps(const BatchSize& size) {
  if (size.num_tokens < kSomeTokens) return kOneStep;
  if (size.num_tokens < kManyTokens) return kFewSteps;
  return size.num_tokens < kMostTokens ? ManySteps(size.first_two) : MostSteps(size.first_two);
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

// Values of tokens that follow each other in one request.
struct Values {
  uint32_t v[kTokensAThread];
};

// Arrays of some ten million bytes drive the lengths out of the card's cache, unless they are the first to be driven
// out themselves: 5 to 8 % from 4 M tokens on (H200).
enum class Store { kCached, kStreaming };

// The values of four tokens that follow each other in one request, or of as many as there are.
template <bool kFirstTwo>
class Quad {
 public:
  // Of t and the three after it, of the request, whose seqlens_expanded these are.
  __device__ __forceinline__ Quad(const DeviceRequest& request, int32_t t, const Values& expanded)
      : request_(&request), index_(int64_t{t} - request.first_token), count_(kTokensAThread), expanded_(expanded) {
    static_assert(kFirstTwo, "the other outputs do not follow from these");
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
      if (i >= row.q && has_next && next.first_token <= t + j) {
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
      if (i >= row.q || t + j >= end) break;
      Take(row, i, j);
    }
    if (t + count_ >= end) is_last_ = true;
  }

  __device__ __forceinline__ void Write(Store store) const {
    const uint32_t k = request_->nsa_index_topk;
    Put4(store, Output::kSeqlensExpanded, expanded_);
    Put4(store, Output::kNsaCacheSeqlens,
         {min(expanded_.v[0], k), min(expanded_.v[1], k), min(expanded_.v[2], k), min(expanded_.v[3], k)});
    if constexpr (!kFirstTwo) {
      Put4(store, Output::kTokenToBatchIdx, sequence_);
      Put4(store, Output::kPositions, position_);
      Put4(store, Output::kKs, ks_);
      Put4(
          store, Output::kKe,
          {ks_.v[0] + expanded_.v[0], ks_.v[1] + expanded_.v[1], ks_.v[2] + expanded_.v[2], ks_.v[3] + expanded_.v[3]});
      if (count_ > 0 && OutputOf(*request_, Output::kNsaCuSeqlensK) != nullptr) {
        // The sums before each of the four: these begin at an index that four values can be stored at. The sum after
        // them is the next four's first, where the last one's sequence goes on.
        Put4(store, Output::kNsaCuSeqlensK, nsa_before_);
        if (is_last_) Put(*request_, Output::kNsaCuSeqlensK, index_ + count_, nsa_after_);
      }
    }
  }

 private:
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

  __device__ __forceinline__ void Put4(Store store, Output output, const Values& values) const {
    int32_t* out = OutputOf(*request_, output);
    if (out == nullptr) return;
    if (count_ == kTokensAThread && reinterpret_cast<uintptr_t>(out) % sizeof values == 0) {
      auto* const to = reinterpret_cast<uint4*>(out + index_);
      const uint4 all = {values.v[0], values.v[1], values.v[2], values.v[3]};
      if (store == Store::kStreaming) {
        __stcs(to, all);
      } else {
        *to = all;
      }
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

template <bool kFirstTwo, typename Before>
__device__ __forceinline__ void WriteQuad(const Batch<Before>& batch, const Row& row, int32_t t, Store store) {
  const int32_t end = batch.size.num_tokens;
  if (t < end) Quad<kFirstTwo>(batch, row, row, /*has_next=*/false, t, end).Write(store);
}

// 32 sequences that follow each other, or as many as there are, a lane of a warp each: read at once and once, where
// each lane's own would be waited for at each of its steps. No t that is asked for is from before the first.
class Window {
 public:
  // `row` is this lane's, any where it has none.
  template <typename Before>
  __device__ __forceinline__ Window(const Batch<Before>& batch, int32_t low, const Row& row)
      : more_(low + kWarp < batch.size.num_sequences),
        first_token_(low + Lane() < batch.size.num_sequences ? row.first_token : INT32_MAX) {}

  // The lane of the last sequence that begins at or before t, which rises from lane to lane.
  __device__ __forceinline__ int32_t Find(int32_t t) const { return LastLaneNotAfter(first_token_, t); }
  // Whether sequences after the window may begin at or before the last lane's t too.
  __device__ __forceinline__ bool Ends(int32_t found) const {
    return more_ && __shfl_sync(~0u, found, kWarp - 1) == kWarp - 1;
  }

 protected:
  static __device__ __forceinline__ int32_t Lane() { return static_cast<int32_t>(threadIdx.x) % kWarp; }
  template <typename Before>
  static __device__ __forceinline__ int32_t SequenceOf(const Batch<Before>& batch, int32_t low) {
    return min(low + Lane(), batch.size.num_sequences - 1);
  }
  static __device__ __forceinline__ const DeviceRequest* Shuffled(const DeviceRequest* request, int32_t lane) {
    return reinterpret_cast<const DeviceRequest*>(
        __shfl_sync(~0u, reinterpret_cast<unsigned long long>(request), lane));
  }

  bool more_;
  int32_t first_token_;
};

// All that is known of each sequence.
template <typename Before>
class RowWindow : public Window {
 public:
  __device__ __forceinline__ RowWindow(const Batch<Before>& batch, int32_t low)
      : RowWindow(batch, low, Row(batch, SequenceOf(batch, low))) {}

  // Writes t and the three after it, which begin in the sequence of lane `found`. Where two sequences meet the second
  // is not loaded either, of the first two outputs: of all of them the rows to be kept for that cost more warps than it
  // saves (H200).
  template <bool kFirstTwo>
  __device__ __forceinline__ void Write(const Batch<Before>& batch, int32_t /*low*/, int32_t found, int32_t t,
                                        Store store) const {
    const int32_t end = batch.size.num_tokens;
    const Row row = At(batch, found);
    if constexpr (kFirstTwo) {
      const int32_t i = t - row.first_token;
      if (__all_sync(~0u, min(row.q - i, end - t) >= kTokensAThread)) {
        Values expanded;
#pragma unroll
        for (int32_t j = 0; j < kTokensAThread; ++j) expanded.v[j] = row.Expanded(i + j);
        return Quad<kFirstTwo>(*row.request, t, expanded).Write(store);
      }
      const Row next = At(batch, (found + 1) % kWarp);
      if (t < end) Quad<kFirstTwo>(batch, row, next, found + 1 < kWarp, t, end).Write(store);
    } else {
      WriteQuad<kFirstTwo>(batch, row, t, store);
    }
  }

 private:
  __device__ __forceinline__ RowWindow(const Batch<Before>& batch, int32_t low, const Row& row)
      : Window(batch, low, row), row_(row) {}

  __device__ __forceinline__ Row At(const Batch<Before>& batch, int32_t lane) const {
    Row row = row_;
    row.b = __shfl_sync(~0u, row.b, lane);
    row.first_token = __shfl_sync(~0u, row.first_token, lane);
    row.q = __shfl_sync(~0u, row.q, lane);
    row.s = __shfl_sync(~0u, row.s, lane);
    row.before.k = __shfl_sync(~0u, row.before.k, lane);
    row.before.nsa = __shfl_sync(~0u, row.before.nsa, lane);
    if (batch.arrays.request_of != nullptr) row.request = Shuffled(row.request, lane);
    return row;
  }

  Row row_;
};

// What seqlens_expanded follows from alone: in one sequence it is a line over the numbers of the tokens, cut at 0. Four
// tokens of one sequence, or of two, are then a choice between two lines and no branch; of short sequences most of a
// warp's steps have such (H200).
template <typename Before>
class LineWindow : public Window {
 public:
  __device__ __forceinline__ LineWindow(const Batch<Before>& batch, int32_t low)
      : LineWindow(batch, low, Row(batch, SequenceOf(batch, low))) {}

  // As RowWindow's.
  template <bool kFirstTwo>
  __device__ __forceinline__ void Write(const Batch<Before>& batch, int32_t low, int32_t found, int32_t t,
                                        Store store) const {
    static_assert(kFirstTwo, "the other outputs do not follow from lines");
    const int32_t next = min(found + 1, kWarp - 1);
    const int32_t until = __shfl_sync(~0u, until_, found);
    const uint32_t at_zero = __shfl_sync(~0u, at_zero_, found);
    const uint32_t next_at_zero = __shfl_sync(~0u, at_zero_, next);
    const int32_t next_first_token = __shfl_sync(~0u, first_token_, next);
    const DeviceRequest* request = batch.arrays.requests;
    if (batch.arrays.request_of != nullptr) request = Shuffled(request_, found);
    if (until - t < kTokensAThread) {
      if (t < batch.size.num_tokens) WriteQuad<kFirstTwo>(batch, Row(batch, low + found), t, store);
      return;
    }
    const bool rises = request->mode == SequenceMode::kCausal;
    Values expanded;
#pragma unroll
    for (int32_t j = 0; j < kTokensAThread; ++j) {
      const uint32_t line = (t + j < next_first_token ? at_zero : next_at_zero) + (rises ? t + j : 0);
      expanded.v[j] = max(static_cast<int32_t>(line), 0);
    }
    Quad<kFirstTwo>(*request, t, expanded).Write(store);
  }

 private:
  __device__ __forceinline__ LineWindow(const Batch<Before>& batch, int32_t low, const Row& row)
      : Window(batch, low, row),
        request_(row.request),
        at_zero_(row.request->mode == SequenceMode::kCausal ? uint32_t(row.s) - row.q + 1 - row.first_token : row.s) {
    // Neither is more than INT32_MAX.
    const uint32_t all = static_cast<uint32_t>(row.first_token) + static_cast<uint32_t>(row.q);
    const auto end = static_cast<int32_t>(min(all, static_cast<uint32_t>(batch.size.num_tokens)));
    const int32_t next_end = __shfl_down_sync(~0u, end, 1);
    bool goes_on = __shfl_down_sync(~0u, first_token_, 1) == end && Lane() + 1 < kWarp;
    if (batch.arrays.request_of != nullptr) goes_on = Shuffled(request_, (Lane() + 1) % kWarp) == request_ && goes_on;
    until_ = goes_on ? next_end : end;
  }

  const DeviceRequest* request_;
  uint32_t at_zero_;  // where the line meets token 0
  int32_t until_;     // the end of this sequence, or of the next where that begins there in the same request
};

struct Tile {
  static constexpr Kernel kKernel = Kernel::kTile;
  template <bool kFirstTwo, typename Before>
  static __device__ __forceinline__ void Write(const Batch<Before>& batch) {
    constexpr int kManySteps = ManySteps(kFirstTwo);
    constexpr int kMostSteps = MostSteps(kFirstTwo);
    switch (TileSteps(batch.size)) {
      case kMostSteps:
        return WriteSteps<kFirstTwo, kMostSteps>(batch);
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
    // What lines are made of takes longer than they spare in few steps (H200).
    using Sequences = std::conditional_t<kFirstTwo && (kSteps > kFewSteps), LineWindow<Before>, RowWindow<Before>>;
    constexpr int32_t kStepTokens = kWarp * kTokensAThread;
    constexpr Store kStore = kSteps > kFewSteps ? Store::kStreaming : Store::kCached;
    const int32_t num_sequences = batch.size.num_sequences;
    const int32_t lane = threadIdx.x % kWarp;
    const int64_t begin = (int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp) * kSteps * kStepTokens;
    const int32_t end = batch.size.num_tokens;
    if (begin >= end || num_sequences == 0) return;
    const auto first_token = static_cast<int32_t>(begin);
    int32_t low = num_sequences <= kWarp ? 0 : WarpLastNotAfter<kWarp>(batch, batch.RangeOf(first_token), first_token);
    Sequences window(batch, low);
    for (int32_t step = 0; step < kSteps; ++step) {
      const auto t = static_cast<int32_t>(Min(begin + step * kStepTokens + lane * kTokensAThread, end));
      int32_t found = window.Find(t);
      if (window.Ends(found)) {
        low += __shfl_sync(~0u, found, 0);
        window = Sequences(batch, low);
        found = window.Find(t);
      }
      if (window.Ends(found)) {
        // Of sequences so short no window holds a step's.
        const int32_t b = LanesLastNotAfter(batch, low, t);
        WriteQuad<kFirstTwo>(batch, Row(batch, b), t, kStore);
        low = __shfl_sync(~0u, b, kWarp - 1);
        window = Sequences(batch, low);
        continue;
      }
      window.template Write<kFirstTwo>(batch, low, found, t, kStore);
    }
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
