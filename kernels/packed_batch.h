// Many requests' lengths, one after another, and where each one's outputs go.
#pragma once

#include <array>
#include <cstddef>
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

// One request of a batch: sequences [first_sequence, first_sequence + num_sequences) of the batch.
struct PackedRequest {
  RequestSpec spec;
  int64_t first_sequence = 0;
  int64_t num_sequences = 0;
  int64_t first_token = 0;
  int64_t total_tokens = 0;
  OutputPointers out = {};
};

// The lengths of a batch as two arrays, [num_sequences] each, and its requests. The arrays are memory that the lane
// owns (pinned, on a device), so that adding a request is the only copy its lengths see. Not thread-safe.
class PackedBatch {
 public:
  // `extend_seq_lens` and `seq_lens` are room for as many sequences as they are long; they outlive the batch.
  PackedBatch(std::span<int32_t> extend_seq_lens, std::span<int32_t> seq_lens, int64_t max_requests);
  // `lengths`: LengthsBytes(max_sequences) for both arrays, [2][max_sequences], extend_seq_lens and seq_lens.
  PackedBatch(int32_t* lengths, int64_t max_sequences, int64_t max_requests);
  static constexpr size_t LengthsBytes(int64_t num_sequences) {
    return 2 * static_cast<size_t>(num_sequences) * sizeof(int32_t);
  }

  // Appends a request. `extend_seq_lens` and `seq_lens` are [num_sequences], none negative, `total_tokens` the first
  // one's sum. False, and nothing is added, when it or its sequences do not fit.
  bool Add(const RequestSpec& spec, std::span<const int32_t> extend_seq_lens, std::span<const int32_t> seq_lens,
           int64_t total_tokens, const OutputPointers& out);
  void Clear();

  std::span<const int32_t> extend_seq_lens() const { return extend_seq_lens_.first(num_sequences_); }
  std::span<const int32_t> seq_lens() const { return seq_lens_.first(num_sequences_); }
  std::span<const PackedRequest> requests() const { return requests_; }
  // Calls `f(request, extend_seq_lens, seq_lens)` with each request and its own lengths, in their order.
  template <typename F>
  void ForEach(F f) const {
    for (const PackedRequest& request : requests_) {
      f(request, extend_seq_lens_.data() + request.first_sequence, seq_lens_.data() + request.first_sequence);
    }
  }
  int64_t num_sequences() const { return static_cast<int64_t>(num_sequences_); }
  int64_t total_tokens() const { return total_tokens_; }

 private:
  std::span<int32_t> extend_seq_lens_;
  std::span<int32_t> seq_lens_;
  int64_t max_requests_;
  size_t num_sequences_ = 0;
  int64_t total_tokens_ = 0;
  std::vector<PackedRequest> requests_;
};

}  // namespace nsa::metadata::kernels
