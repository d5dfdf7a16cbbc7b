// Many requests that are computed together: their lengths, and where each one's outputs go.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels/outputs.h"

namespace nsa::metadata::kernels {

// Where to write a request's outputs. An output that is not asked is null; the others have room for OutputLength
// values.
using OutputPointers = std::array<int32_t*, kNumOutputs>;

// What one request asks of its sequences.
struct RequestSpec {
  int32_t nsa_index_topk = 0;
  SequenceMode mode = SequenceMode::kRepeat;
  OutputSet outputs;
};

struct BatchedRequest {
  RequestSpec spec;
  const int32_t* extend_seq_lens = nullptr;  // [num_sequences]
  const int32_t* seq_lens = nullptr;         // [num_sequences]
  int64_t num_sequences = 0;
  int64_t total_tokens = 0;
  OutputPointers out = {};
};

// The requests of a batch. Their lengths stay where they are, in memory of whoever adds them: a lane reads them there,
// or copies them to where its device can. Not thread-safe.
class RequestBatch {
 public:
  RequestBatch(int64_t max_sequences, int64_t max_requests);

  // Appends a request. `extend_seq_lens` and `seq_lens` are [num_sequences], none negative, `total_tokens` the first
  // one's sum; they and what `out` points to are there until the last Expand of it. False, and nothing is added, when
  // it or its sequences do not fit.
  bool Add(const RequestSpec& spec, std::span<const int32_t> extend_seq_lens, std::span<const int32_t> seq_lens,
           int64_t total_tokens, const OutputPointers& out);
  void Clear();

  std::span<const BatchedRequest> requests() const { return requests_; }
  int64_t num_sequences() const { return num_sequences_; }
  int64_t total_tokens() const { return total_tokens_; }

 private:
  int64_t max_sequences_;
  int64_t max_requests_;
  int64_t num_sequences_ = 0;
  int64_t total_tokens_ = 0;
  std::vector<BatchedRequest> requests_;
};

}  // namespace nsa::metadata::kernels
