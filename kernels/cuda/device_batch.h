// A batch as the kernels see it. Plain data, for host and device code.
#pragma once

#include <cstdint>

#include "kernels/outputs.h"

namespace nsa::metadata::kernels::cuda {

// One request of a batch.
struct DeviceRequest {
  int64_t first_sequence = 0;
  int64_t first_token = 0;
  int32_t nsa_index_topk = 0;
  SequenceMode mode = SequenceMode::kRepeat;
  // Memory that the device can write, null where an output is not asked.
  int32_t* out[kNumOutputs] = {};
};

// Sums over the sequences of a request that come before a sequence.
struct SumsBefore {
  int64_t k = 0;    // of seq_lens
  int64_t nsa = 0;  // of nsa_cache_seqlens, over those sequences' tokens
};

// Pointers are the device's.
struct DeviceBatch {
  const int32_t* extend_seq_lens = nullptr;  // [num_sequences]
  const int32_t* seq_lens = nullptr;         // [num_sequences]
  // [num_sequences + 1], the batch's first token of each sequence, and [num_sequences]. Not read by the linear search.
  const int64_t* first_tokens = nullptr;
  const SumsBefore* sums_before = nullptr;
  // [num_sequences], the request each sequence belongs to, and [num_requests]. Null: all belong to `only_request`.
  const int32_t* request_of = nullptr;
  const DeviceRequest* requests = nullptr;
  DeviceRequest only_request;

  int64_t num_sequences = 0;
  int64_t num_requests = 1;
  // Tokens at and after this one are not written.
  int64_t capacity = 0;
};

}  // namespace nsa::metadata::kernels::cuda
