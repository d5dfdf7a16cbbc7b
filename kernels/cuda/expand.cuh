// What belongs to a token, and to a sequence; the kernels differ in how a thread finds its tokens' sequence.
//
// Every value follows from the token's place in its sequence and from sums over the sequences before it: no thread
// waits for another, and nsa_cu_seqlens_k needs no scan over tokens, since the sum over a part of one sequence has a
// closed form.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device_batch.h"

namespace nsa::metadata::kernels::cuda {

__device__ __forceinline__ int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ __forceinline__ int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }

// A negative length counts as 0.
__device__ __forceinline__ int32_t LengthAt(const int32_t* lengths, int32_t b) { return max(lengths[b], 0); }

// The sum of min(seqlens_expanded, K) over the first n tokens of a sequence of q tokens and length s.
__device__ __forceinline__ uint32_t NsaSum(SequenceMode mode, int64_t k, int64_t q, int64_t s, int64_t n) {
  if (n <= 0) return 0;
  if (mode == SequenceMode::kRepeat) return static_cast<uint32_t>(n * Min(s, k));
  // seqlens_expanded rises by one a token, from s - q + 1 to `last`; those below 1 add nothing, those above K add K.
  const int64_t first = Max(s - q + 1, 1);
  const int64_t last = s - q + n;
  const int64_t ramp_end = Min(last, k);
  const int64_t ramp = Max(ramp_end - first + 1, 0);
  const int64_t above = Max(last - Max(first, k + 1) + 1, 0);
  return static_cast<uint32_t>(ramp * (first + ramp_end) / 2 + above * k);
}

// Over the sequences before one.
struct Sums {
  int64_t tokens = 0;
  SumsBefore before;
};

__device__ __forceinline__ Sums operator+(const Sums& a, const Sums& b) {
  return {a.tokens + b.tokens, {a.before.k + b.before.k, a.before.nsa + b.before.nsa}};
}

// A number past int32 is no token's: what begins there is not written.
__device__ __forceinline__ int32_t FirstToken(int64_t tokens) { return static_cast<int32_t>(Min(tokens, INT32_MAX)); }

// What comes before a sequence, where that is one array from the batch's begin to its end.
struct FlatSums {
  const int32_t* first_tokens;
  const SumsBefore* sums_before;  // null where no output needs them
  const int32_t* extend_seq_lens;

  __device__ __forceinline__ int32_t FirstTokenOf(int32_t b) const { return first_tokens[b]; }
  __device__ __forceinline__ int32_t TokensOf(int32_t b, const DeviceRequest&) const {
    return LengthAt(extend_seq_lens, b);
  }
  __device__ __forceinline__ SumsBefore SumsBeforeOf(int32_t b) const {
    return sums_before == nullptr ? SumsBefore{} : sums_before[b];
  }
};

// Sequences from `low` up to `high`.
struct Range {
  int32_t low;
  int32_t high;
};

// A batch in a kernel's hands. `Before` is FlatSums or has its functions: one type for sums in shared and in global
// memory made nvcc 13.0 read the latter as the former. TokensOf is a sequence's extend_seq_len; RangeOf may be left
// out.
template <typename Before>
struct Batch {
  BatchSize size;
  BatchArrays arrays;
  Before before;

  // Where the last sequence that begins at or before t lies; the range's first one does.
  __device__ __forceinline__ Range RangeOf(int32_t t) const {
    if constexpr (requires { before.RangeOf(size, t); }) return before.RangeOf(size, t);
    return {0, size.num_sequences};
  }
  __device__ __forceinline__ int32_t FirstTokenOf(int32_t b) const { return before.FirstTokenOf(b); }
  __device__ __forceinline__ const DeviceRequest& RequestOf(int32_t b) const {
    return arrays.requests[arrays.request_of == nullptr ? 0 : arrays.request_of[b]];
  }
};

// A sequence and its request.
struct Row {
  template <typename Before>
  __device__ __forceinline__ Row(const Batch<Before>& batch, int32_t sequence)
      : b(sequence),
        request(&batch.RequestOf(b)),
        first_token(batch.FirstTokenOf(b)),
        q(batch.before.TokensOf(b, *request)),
        s(LengthAt(batch.arrays.seq_lens, b)),
        before(batch.before.SumsBeforeOf(b)) {}

  __device__ __forceinline__ int32_t Position(int32_t i) const { return s - q + i; }
  // seqlens_expanded of token i.
  __device__ __forceinline__ int32_t Expanded(int32_t i) const {
    return request->mode == SequenceMode::kCausal ? max(Position(i) + 1, 0) : s;
  }
  // The sum of nsa_cache_seqlens over the sequences before and this one's first n tokens.
  __device__ __forceinline__ uint32_t NsaSumTo(int32_t n) const {
    return before.nsa + NsaSum(request->mode, request->nsa_index_topk, q, s, n);
  }

  int32_t b;
  const DeviceRequest* request;
  int32_t first_token;
  int32_t q;
  int32_t s;
  SumsBefore before;
};

__device__ __forceinline__ int32_t* OutputOf(const DeviceRequest& request, Output output) {
  return request.out[static_cast<int>(output)];
}

__device__ __forceinline__ void Put(const DeviceRequest& request, Output output, int64_t index, uint32_t value) {
  if (int32_t* out = OutputOf(request, output)) out[index] = static_cast<int32_t>(value);
}

// Writes what belongs to token i of `row`.
template <bool kFirstTwo>
__device__ __forceinline__ void WriteToken(const Row& row, int32_t i) {
  const DeviceRequest& request = *row.request;
  const int64_t t = int64_t{row.first_token} - request.first_token + i;
  const int32_t expanded = row.Expanded(i);
  Put(request, Output::kSeqlensExpanded, t, expanded);
  Put(request, Output::kNsaCacheSeqlens, t, min(expanded, request.nsa_index_topk));
  if constexpr (!kFirstTwo) {
    Put(request, Output::kTokenToBatchIdx, t, row.b - request.first_sequence);
    Put(request, Output::kPositions, t, row.Position(i));
    if (OutputOf(request, Output::kNsaCuSeqlensK) != nullptr) {
      Put(request, Output::kNsaCuSeqlensK, t + 1, row.NsaSumTo(i + 1));
    }
    Put(request, Output::kKs, t, row.before.k);
    Put(request, Output::kKe, t, row.before.k + expanded);
  }
}

// Writes the running sums over sequences, up to and including each, and the 0 that each running sum begins with. The
// grid's threads share the work.
template <typename Before>
__device__ __forceinline__ void WriteSums(const Batch<Before>& batch) {
  const int32_t thread = blockIdx.x * blockDim.x + threadIdx.x;
  const int32_t threads = gridDim.x * blockDim.x;
  for (int32_t b = thread; b < batch.size.num_sequences; b += threads) {
    const DeviceRequest& request = batch.RequestOf(b);
    if (OutputOf(request, Output::kCuSeqlensQ) == nullptr && OutputOf(request, Output::kCuSeqlensK) == nullptr)
      continue;
    const Row row(batch, b);
    const int64_t index = int64_t{b} - request.first_sequence + 1;
    Put(request, Output::kCuSeqlensQ, index, uint32_t(row.first_token) - request.first_token + row.q);
    Put(request, Output::kCuSeqlensK, index, row.before.k + row.s);
  }
  for (int32_t r = thread; r < batch.size.num_requests; r += threads) {
    for (Output output : {Output::kCuSeqlensQ, Output::kCuSeqlensK, Output::kNsaCuSeqlensK}) {
      Put(batch.arrays.requests[r], output, 0, 0);
    }
  }
}

}  // namespace nsa::metadata::kernels::cuda
