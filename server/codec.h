// Bytes to a validated request: the only place where a caller's input is judged.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "google/protobuf/message_lite.h"
#include "grpcpp/support/byte_buffer.h"
#include "kernels/request_batch.h"
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
  // [num_sequences] each; they lie in the request they were read from, or in the Task that took them.
  std::span<const int32_t> extend_seq_lens;
  std::span<const int32_t> seq_lens;
  int64_t total_tokens = 0;
  ReplyLayout layout;
};

// Larger requests leave memory in the message they are decoded to that isn't worth keeping.
inline constexpr size_t kKeptRequestBytes = 64 << 10;

// Decodes `bytes` into `message`. Refuses what is none of its kind (MALFORMED), else returns nothing.
std::optional<Refusal> Decode(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message);

// What Validate does with a request whose spec and lengths are in `expansion`, in two parts: sizes and values; what
// they come to. The second sets total_tokens and layout, with the head that Framing::kInference has.
std::optional<Refusal> CheckLengths(const Expansion& expansion, const RequestLimits& limits);
std::optional<Refusal> Measure(const RequestLimits& limits, Framing framing, std::string inference_head,
                               Expansion* expansion);

// The refusal of a message of `bytes` bytes that is `what`.
Refusal Malformed(const std::string& what, int64_t bytes);

// The refusal of the first thing wrong with a request, or nothing, and then `expansion` is set. Judges `request`
// against the contract and `limits`; a unary reply has a limit of its own.
std::optional<Refusal> Validate(const v1::ExpandRequest& request, const RequestLimits& limits, Framing framing,
                                Expansion* expansion);

}  // namespace nsa::metadata::server
