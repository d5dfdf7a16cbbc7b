// A caller's bytes, through the codec, the kernels and the reply's layout, and back: they are refused with a reason, or
// answered as the reference answers.

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>

#include <algorithm>
#include <string>
#include <vector>

#include "client/chunks.h"
#include "server/codec.h"
#include "server/inference_codec.h"
#include "server/output_pool.h"
#include "tests/fuzz/check.h"
#include "tests/support/requests.h"
#include "tests/support/rpc.h"

namespace nsa::metadata {
namespace {

using server::Framing;
using testing::Check;

// Small, so that it is as likely to be passed as not, but large enough for replies in chunks.
constexpr server::RequestLimits kLimits = {
    .max_sequences = 64, .max_tokens = 1 << 17, .max_reply_bytes = 3 << 20, .max_unary_reply_bytes = 128 << 10};

struct Machine {
  std::shared_ptr<server::OutputPool> pool = *server::OutputPool::Create(*kernels::AllocatePageable(8 << 20));
  std::unique_ptr<kernels::Backend> backend = kernels::CreateCpuBackend();
  std::unique_ptr<kernels::Lane> lane = *backend->CreateLane({.max_sequences = 64, .max_requests = 1});
};

// In as many slices as a transport may deliver it in.
grpc::ByteBuffer InSlices(std::string_view bytes, size_t count) {
  std::vector<grpc::Slice> slices;
  for (size_t i = 0; i < count; ++i) {
    const std::string_view part =
        bytes.substr(bytes.size() * i / count, bytes.size() * (i + 1) / count - bytes.size() * i / count);
    slices.emplace_back(part.data(), part.size());
  }
  return {slices.data(), slices.size()};
}

std::string BytesOf(const grpc::ByteBuffer& buffer) {
  std::vector<grpc::Slice> slices;
  Check(buffer.Dump(&slices).ok(), "a reply's slices are readable");
  std::string bytes;
  for (const grpc::Slice& slice : slices) bytes.append(slice.begin(), slice.end());
  return bytes;
}

v1::ExpandResponse Join(const server::Messages& messages, Framing framing) {
  v1::ExpandResponse whole;
  if (framing == Framing::kUnary) {
    Check(messages.size() == 1 && whole.ParseFromString(BytesOf(messages.front().bytes)), "a reply is a message");
    return whole;
  }
  if (framing == Framing::kInference) {
    inference::ModelInferResponse response;
    Check(messages.size() == 1 && response.ParseFromString(BytesOf(messages.front().bytes)), "a reply is a message");
    return testing::ToExpandResponse(response);
  }
  client::Chunks chunks;
  for (const server::ReplyMessage& message : messages) {
    v1::ExpandStreamResponse chunk;
    Check(chunk.ParseFromString(BytesOf(message.bytes)), "a chunk is a message");
    Check(chunk.last_chunk() == (&message == &messages.back()), "the last chunk says so");
    const absl::Status appended = chunks.Append(chunk);
    Check(appended.ok(), appended.ToString());
  }
  return chunks.Take();
}

void Answer(Machine& machine, const server::Expansion& expansion, Framing framing) {
  testing::TestRequest request;
  request.spec = expansion.spec;
  request.extend_seq_lens.assign(expansion.extend_seq_lens.begin(), expansion.extend_seq_lens.end());
  request.seq_lens.assign(expansion.seq_lens.begin(), expansion.seq_lens.end());
  const auto is_length = [](int32_t value) { return value >= 0; };
  Check(std::ranges::all_of(request.extend_seq_lens, is_length) && std::ranges::all_of(request.seq_lens, is_length),
        "no negative length is answered");
  Check(request.total_tokens() == expansion.total_tokens && expansion.total_tokens <= kLimits.max_tokens, "tokens");
  const server::OutputPermit permit = machine.pool->Reserve(expansion.layout.block_bytes());
  Check(static_cast<bool>(permit), "a reply within its limit has room");
  machine.lane->batch().Clear();
  Check(machine.lane->batch().Add(expansion.spec, expansion.extend_seq_lens, expansion.seq_lens, expansion.total_tokens,
                                  expansion.layout.Pointers(permit.data())),
        "a request within its limits fits a lane");
  Check(machine.lane->Expand().ok(), "the CPU expands it");
  const server::ReplyScalars scalars = {.request_id = expansion.request_id,
                                        .total_tokens = expansion.total_tokens,
                                        .mode = static_cast<v1::SequenceMode>(expansion.spec.mode)};
  const v1::ExpandResponse response = Join(expansion.layout.Frame(scalars, permit, *machine.pool), framing);
  Check(testing::ToArrays(response) == testing::ReferenceArrays(request), "the arrays are the reference's");
  Check(framing == Framing::kInference || response.request_id() == expansion.request_id, "request_id");
}

}  // namespace
}  // namespace nsa::metadata

// The first byte says how the rest travels: its lowest bit as a stream's item, the next two in how many slices, the one
// after them by the Open Inference Protocol.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nsa::metadata;  // NOLINT: a function outside of it
  static Machine machine;
  if (size == 0) return 0;
  const grpc::ByteBuffer bytes = InSlices({reinterpret_cast<const char*>(data) + 1, size - 1}, 1 + (data[0] >> 1 & 3));
  v1::ExpandRequest request;
  inference::ModelInferRequest inference_request;
  std::optional<server::Refusal> refusal;
  const Framing framing = data[0] & 8 ? Framing::kInference : data[0] & 1 ? Framing::kStream : Framing::kUnary;
  if (framing == Framing::kInference) {
    refusal = server::Decode(bytes, &inference_request);
  } else if (framing == Framing::kStream) {
    v1::ExpandStreamRequest message;
    refusal = server::Decode(bytes, &message);
    request.Swap(message.mutable_expand());
  } else {
    refusal = server::Decode(bytes, &request);
  }
  server::Expansion expansion;
  server::InferenceRequest inference;
  if (!refusal && framing == Framing::kInference) {
    refusal = server::Validate(inference_request, kLimits, &expansion, &inference);
  } else if (!refusal) {
    refusal = server::Validate(request, kLimits, framing, &expansion);
  }
  if (refusal) {
    const bool unknown = refusal->code == grpc::StatusCode::NOT_FOUND && !inference.model;
    Check(unknown || refusal->code == grpc::StatusCode::INVALID_ARGUMENT, "a refusal's code");
    Check(!refusal->message.empty() && refusal->message.size() < 1000, "a refusal says why, in short");
    Check(!ToStatus(*refusal).error_details().empty(), "and has details");
  } else {
    Answer(machine, expansion, framing);
  }
  return 0;
}
