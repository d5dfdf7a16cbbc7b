// Bytes to a validated request: the only place where a caller's input is judged.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "google/protobuf/arena.h"
#include "grpcpp/support/byte_buffer.h"
#include "kernels/packed_batch.h"
#include "nsa/metadata/v1/metadata.pb.h"
#include "server/options.h"
#include "server/refusal.h"
#include "server/reply_layout.h"

namespace nsa::metadata::server {

// A request that may be computed.
struct Expansion {
  uint64_t request_id = 0;
  bool include_timing = false;
  kernels::RequestSpec spec;
  // [num_sequences] each; they lie in the arena the request was decoded on.
  std::span<const int32_t> extend_seq_lens;
  std::span<const int32_t> seq_lens;
  int64_t total_tokens = 0;
  ReplyLayout layout;
};

// Decodes an ExpandRequest on `arena`. The refusal of the first thing wrong with it, or nothing, and then `expansion`
// is set.
std::optional<Refusal> Decode(grpc::ByteBuffer& bytes, google::protobuf::Arena& arena, v1::ExpandRequest** request);

// Judges `request` against the contract and `limits`; `unary` replies have a limit of their own.
std::optional<Refusal> Validate(const v1::ExpandRequest& request, const RequestLimits& limits, bool unary,
                                Expansion* expansion);

}  // namespace nsa::metadata::server
