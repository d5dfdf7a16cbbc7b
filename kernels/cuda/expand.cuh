// What the search kernels share. A thread finds the sequence of its token, by a search of its kernel's own, and writes
// the token's values.
//
// Every value follows from the token's place in its sequence and from sums over the sequences before it: no thread
// waits for another, and nsa_cu_seqlens_k needs no scan over tokens, since the sum over a part of one sequence has a
// closed form.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device_batch.h"

namespace nsa::metadata::kernels::cuda {

constexpr int kThreads = 256;

__device__ __forceinline__ int64_t Min(int64_t a, int64_t b) { return a < b ? a : b; }
__device__ __forceinline__ int64_t Max(int64_t a, int64_t b) { return a > b ? a : b; }

// A negative length counts as 0.
__device__ __forceinline__ int64_t LengthAt(const int32_t* lengths, int64_t b) { return Max(lengths[b], 0); }

__device__ __forceinline__ int32_t* OutputOf(const DeviceRequest& request, Output output) {
  return request.out[static_cast<int>(output)];
}

__device__ __forceinline__ const DeviceRequest& RequestAt(const DeviceBatch& batch, int64_t r) {
  return batch.requests == nullptr ? batch.only_request : batch.requests[r];
}

__device__ __forceinline__ int64_t RequestIndexOf(const DeviceBatch& batch, int64_t b) {
  return batch.request_of == nullptr ? 0 : batch.request_of[b];
}

// The sum of min(seqlens_expanded, K) over the first n tokens of a sequence of q tokens and length s.
__device__ __forceinline__ int64_t NsaSum(SequenceMode mode, int64_t k, int64_t q, int64_t s, int64_t n) {
  if (n <= 0) return 0;
  if (mode == SequenceMode::kRepeat) return n * Min(s, k);
  // seqlens_expanded rises by one a token, from s - q + 1 to `last`; those below 1 add nothing, those above K add K.
  const int64_t first = Max(s - q + 1, 1);
  const int64_t last = s - q + n;
  const int64_t ramp_end = Min(last, k);
  const int64_t ramp = Max(ramp_end - first + 1, 0);
  const int64_t above = Max(last - Max(first, k + 1) + 1, 0);
  return ramp * (first + ramp_end) / 2 + above * k;
}

// A sequence, and what comes before it.
struct Place {
  int64_t b;            // in the batch
  int64_t first_token;  // in the batch
  int64_t q;
  int64_t s;
  SumsBefore before;
};

// Writes what belongs to token i of the sequence at `place`.
__device__ __forceinline__ void WriteToken(const DeviceRequest& request, const Place& place, int64_t i) {
  const int64_t t = place.first_token + i - request.first_token;
  const int64_t k = request.nsa_index_topk;
  const int64_t position = place.s - place.q + i;
  const int64_t expanded = request.mode == SequenceMode::kCausal ? Max(position + 1, 0) : place.s;
  const auto put = [&request](Output output, int64_t index, int64_t value) {
    if (int32_t* out = OutputOf(request, output)) out[index] = static_cast<int32_t>(value);
  };
  put(Output::kSeqlensExpanded, t, expanded);
  put(Output::kNsaCacheSeqlens, t, Min(expanded, k));
  put(Output::kTokenToBatchIdx, t, place.b - request.first_sequence);
  put(Output::kPositions, t, position);
  if (OutputOf(request, Output::kNsaCuSeqlensK) != nullptr) {
    put(Output::kNsaCuSeqlensK, t + 1, place.before.nsa + NsaSum(request.mode, k, place.q, place.s, i + 1));
  }
  put(Output::kKs, t, place.before.k);
  put(Output::kKe, t, place.before.k + expanded);
}

// Writes the running sums up to and including the sequence at `place`.
__device__ __forceinline__ void WriteSequence(const DeviceRequest& request, const Place& place) {
  const int64_t index = place.b - request.first_sequence + 1;
  if (int32_t* out = OutputOf(request, Output::kCuSeqlensQ)) {
    out[index] = static_cast<int32_t>(place.first_token + place.q - request.first_token);
  }
  if (int32_t* out = OutputOf(request, Output::kCuSeqlensK))
    out[index] = static_cast<int32_t>(place.before.k + place.s);
}

// Writes the 0 that each running sum begins with.
__device__ __forceinline__ void WriteZeros(const DeviceRequest& request) {
  for (Output output : {Output::kCuSeqlensQ, Output::kCuSeqlensK, Output::kNsaCuSeqlensK}) {
    if (int32_t* out = OutputOf(request, output)) out[0] = 0;
  }
}

// `Search` has Token(batch, t, &place), false when there is no token t, and Sequence(batch, b, &place).
template <typename Search>
__global__ void __launch_bounds__(kThreads) Expand(const __grid_constant__ DeviceBatch batch) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  Place place;
  if (thread < batch.capacity && Search::Token(batch, thread, &place)) {
    WriteToken(RequestAt(batch, RequestIndexOf(batch, place.b)), place, thread - place.first_token);
  }
  // There may be more sequences, or requests, than tokens.
  for (int64_t b = thread; b < batch.num_sequences; b += threads) {
    const DeviceRequest& request = RequestAt(batch, RequestIndexOf(batch, b));
    if (OutputOf(request, Output::kCuSeqlensQ) == nullptr && OutputOf(request, Output::kCuSeqlensK) == nullptr)
      continue;
    Search::Sequence(batch, b, &place);
    WriteSequence(request, place);
  }
  for (int64_t r = thread; r < batch.num_requests; r += threads) WriteZeros(RequestAt(batch, r));
}

}  // namespace nsa::metadata::kernels::cuda
