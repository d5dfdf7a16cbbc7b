// The one request that a benchmark sends over and over.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/request.h"

namespace nsa::metadata::client {

struct BenchShape {
  int64_t num_sequences = 4;
  // The largest reply that is no larger than this, bytes; used while total_tokens is 0.
  int64_t reply_bytes = 142;
  int64_t total_tokens = 0;
  v1::SequenceMode mode = v1::SEQUENCE_MODE_CAUSAL;
  std::vector<v1::Output> outputs;
  uint64_t seed = 1;
  bool include_timing = false;
};

// The ids that a benchmark's requests may have: kNumBenchIds from kFirstBenchId on, all of them three bytes long on the
// wire, so that requests and replies of one shape are of one size.
inline constexpr uint64_t kFirstBenchId = uint64_t{1} << 14;
inline constexpr uint64_t kNumBenchIds = uint64_t{1} << 20;

// A request of the given shape, and what has to be answered. The same shape gives the same lengths on every machine.
class BenchRequest {
 public:
  // INVALID_ARGUMENT when no reply is as small as reply_bytes, or there are fewer tokens than sequences.
  static absl::StatusOr<BenchRequest> Create(const BenchShape& shape);

  // The lengths are this object's: a Request lives no longer.
  Request WithId(uint64_t request_id) const;
  // The reply to the request with kFirstBenchId.
  const v1::ExpandResponse& reply() const { return reply_; }
  int64_t num_sequences() const { return static_cast<int64_t>(seq_lens_.size()); }

 private:
  BenchRequest(const BenchShape& shape, int64_t total_tokens);

  BenchShape shape_;
  std::vector<int32_t> extend_seq_lens_;
  std::vector<int32_t> seq_lens_;
  v1::ExpandResponse reply_;
};

}  // namespace nsa::metadata::client
