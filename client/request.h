// What a caller asks for.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "nsa/metadata/v1/metadata.pb.h"

namespace nsa::metadata::client {

// Sequences to expand; the words are those of the proto. The spans point to the caller's arrays, which have to live
// until the function that takes the Request returns.
struct Request {
  // The mode has no default: engines differ in it, and the wrong one gives wrong lengths without an error.
  explicit Request(v1::SequenceMode mode) : mode(mode) {}

  v1::SequenceMode mode;
  // [num_sequences], tokens: how many tokens sequence b extends by.
  std::span<const int32_t> extend_seq_lens;
  // [num_sequences], tokens: how long sequence b is.
  std::span<const int32_t> seq_lens;
  // The bound K in nsa_cache_seqlens = min(seqlens_expanded, K); at least 1 when an output that needs it is asked.
  int32_t nsa_index_topk = 0;
  // The arrays to compute. Empty: seqlens_expanded and nsa_cache_seqlens.
  std::vector<v1::Output> outputs;
  // Any value, returned in the answer.
  uint64_t request_id = 0;
  // Whether the answer says where its time went.
  bool include_timing = false;
};

// The message that goes to the server. Nothing is checked: the server says what it refuses.
v1::ExpandRequest ToProto(const Request& request);

}  // namespace nsa::metadata::client
