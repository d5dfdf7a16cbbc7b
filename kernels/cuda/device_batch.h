// A batch as the kernels see it. Plain data, for host and device code.
//
// All arithmetic is 32 bits wide, sums modulo 2^32: what an output of int32 keeps of them is the same, and a multiply
// of 64 bits costs a device many times as much.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/outputs.h"

#ifdef __CUDACC__
#define NSA_HOST_DEVICE __host__ __device__
#else
#define NSA_HOST_DEVICE
#endif

namespace nsa::metadata::kernels::cuda {

// Tokens that a thread may write in one go. Each request of a batch begins at a multiple of it, so that these belong to
// one request; numbers that are left out between two requests are no tokens.
inline constexpr int32_t kTokensAThread = 4;

// One request of a batch.
struct DeviceRequest {
  int32_t first_sequence = 0;
  int32_t first_token = 0;
  int32_t end_token = 0;
  int32_t nsa_index_topk = 0;
  SequenceMode mode = SequenceMode::kRepeat;
  // Memory that the device can write, null where an output is not asked.
  int32_t* out[kNumOutputs] = {};
};

// Sums over the sequences of a request that come before a sequence.
struct SumsBefore {
  uint32_t k = 0;    // of seq_lens
  uint32_t nsa = 0;  // of nsa_cache_seqlens, over those sequences' tokens
};

struct BatchSize {
  int32_t num_sequences = 0;
  int32_t num_requests = 0;
  // Numbers at and after this one are not tokens.
  int32_t num_tokens = 0;
  // Whether no request asks more than seqlens_expanded and nsa_cache_seqlens, which need no sums.
  bool first_two = false;
};

// The number of a request in its batch.
using RequestIndex = uint16_t;
inline constexpr int64_t kMostRequests = int64_t{UINT16_MAX} + 1;

// The arrays of a batch that a kernel reads besides where tokens begin.
struct BatchArrays {
  const DeviceRequest* requests = nullptr;  // [num_requests]
  // [num_sequences], the request each sequence belongs to. Null where there is only one.
  const RequestIndex* request_of = nullptr;
  const int32_t* seq_lens = nullptr;  // [num_sequences]
};

// All of a batch one after another in one piece of memory, which the host writes and the kernels read: offsets in bytes
// from its begin, which is 8-byte aligned. As few bytes as will do, since every block reads them across the card, and
// from 4 KiB on a launch takes 1 us longer for each 5 KiB (H100): extend_seq_lens is what lies between one first token
// and the next, or the request's end.
struct BatchLayout {
  NSA_HOST_DEVICE constexpr explicit BatchLayout(const BatchSize& size) {
    const size_t n = static_cast<size_t>(size.num_sequences);
    requests = Take(static_cast<size_t>(size.num_requests) * sizeof(DeviceRequest));
    sums_before = Take(size.first_two ? 0 : n * sizeof(SumsBefore));
    request_of = Take(size.num_requests == 1 ? 0 : n * sizeof(RequestIndex));
    first_tokens = Take((n + 1) * sizeof(int32_t));
    seq_lens = Take(n * sizeof(int32_t));
  }

  size_t requests = 0;     // DeviceRequest [num_requests]
  size_t sums_before = 0;  // SumsBefore [num_sequences], none for first_two
  size_t request_of = 0;   // RequestIndex [num_sequences], none for one request
  size_t first_tokens =
      0;                // int32_t [num_sequences + 1], the number of each sequence's first token, rising; num_tokens
  size_t seq_lens = 0;  // int32_t [num_sequences]
  size_t bytes = 0;     // all of them

 private:
  NSA_HOST_DEVICE constexpr size_t Take(size_t count) {
    const size_t begin = bytes;
    bytes += (count + 7) / 8 * 8;
    return begin;
  }
};

}  // namespace nsa::metadata::kernels::cuda
