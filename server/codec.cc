#include "server/codec.h"

#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/support/proto_buffer_reader.h"
#include "kernels/measure.h"

namespace nsa::metadata::server {
namespace {

using kernels::Output;
using kernels::OutputSet;
using Check = std::optional<Refusal>;

constexpr OutputSet kDefaultOutputs = {Output::kSeqlensExpanded, Output::kNsaCacheSeqlens};
// The only outputs whose values may pass int32; the others lie within a length or a limit.
constexpr OutputSet kSums = {Output::kCuSeqlensK, Output::kNsaCuSeqlensK, Output::kKs, Output::kKe};

std::string Element(const char* field, size_t index) { return absl::StrCat(field, "[", index, "]"); }

// "`field` is `value`, `bound` `limit`", as a refusal.
Refusal Refuse(v1::RefusalReason reason, const std::string& field, int64_t value, const char* bound, int64_t limit) {
  return Invalid(reason, absl::StrCat(field, " is ", value, ", ", bound, " ", limit), field, value, limit);
}

Check CheckSizes(const Expansion& expansion, const RequestLimits& limits) {
  const auto q = static_cast<int64_t>(expansion.extend_seq_lens.size());
  const auto s = static_cast<int64_t>(expansion.seq_lens.size());
  if (q != s) {
    return Invalid(v1::REFUSAL_REASON_LENGTHS_DIFFER,
                   absl::StrCat("seq_lens has ", s, " values, extend_seq_lens has ", q), "seq_lens", s, q);
  }
  if (q > limits.max_sequences) {
    return Invalid(v1::REFUSAL_REASON_TOO_MANY_SEQUENCES,
                   absl::StrCat("extend_seq_lens has ", q, " values, more than max_sequences ", limits.max_sequences),
                   "extend_seq_lens", q, limits.max_sequences);
  }
  return std::nullopt;
}

Check CheckValues(const char* field, std::span<const int32_t> lengths) {
  const std::optional<size_t> negative = kernels::FirstNegative(lengths);
  if (!negative) return std::nullopt;
  return Refuse(v1::REFUSAL_REASON_NEGATIVE_LENGTH, Element(field, *negative), lengths[*negative], "less than", 0);
}

Check ReadMode(const v1::ExpandRequest& request, kernels::RequestSpec* spec) {
  switch (request.mode()) {
    case v1::SEQUENCE_MODE_UNSPECIFIED:
    case v1::SEQUENCE_MODE_REPEAT:
      spec->mode = kernels::SequenceMode::kRepeat;
      return std::nullopt;
    case v1::SEQUENCE_MODE_CAUSAL:
      spec->mode = kernels::SequenceMode::kCausal;
      return std::nullopt;
    default:
      return Refuse(v1::REFUSAL_REASON_UNKNOWN_ENUM, "mode", request.mode(), "no known mode; the last known is",
                    v1::SequenceMode_MAX);
  }
}

Check ReadOutputs(const v1::ExpandRequest& request, kernels::RequestSpec* spec) {
  for (int i = 0; i < request.outputs_size(); ++i) {
    const int output = request.outputs(i);
    if (output < v1::OUTPUT_SEQLENS_EXPANDED || output > v1::Output_MAX) {
      return Refuse(v1::REFUSAL_REASON_UNKNOWN_ENUM, Element("outputs", i), output,
                    "no known output; the last known is", v1::Output_MAX);
    }
    spec->outputs.Add(static_cast<Output>(output - v1::OUTPUT_SEQLENS_EXPANDED));
  }
  if (spec->outputs.empty()) spec->outputs = kDefaultOutputs;
  return std::nullopt;
}

Check CheckTopK(const kernels::RequestSpec& spec) {
  if (spec.nsa_index_topk >= 1 || !spec.outputs.HasAny(kernels::kNsaOutputs)) return std::nullopt;
  return Refuse(v1::REFUSAL_REASON_TOP_K_TOO_SMALL, "nsa_index_topk", spec.nsa_index_topk,
                "and the outputs asked for need at least", 1);
}

Check CheckTokens(int64_t total_tokens, const RequestLimits& limits) {
  if (total_tokens <= limits.max_tokens) return std::nullopt;
  return Invalid(v1::REFUSAL_REASON_TOO_MANY_TOKENS,
                 absl::StrCat("extend_seq_lens sums to ", total_tokens, ", more than max_tokens ", limits.max_tokens),
                 "extend_seq_lens", total_tokens, limits.max_tokens);
}

Check CheckOverflow(const Expansion& expansion) {
  constexpr int64_t kLargest = std::numeric_limits<int32_t>::max();
  if (!expansion.spec.outputs.HasAny(kSums)) return std::nullopt;
  for (Output output : kernels::kAllOutputs) {
    if (!expansion.spec.outputs.Has(output) || !kSums.Has(output)) continue;
    const int64_t value = kernels::LargestValue(output, expansion.spec, expansion.extend_seq_lens, expansion.seq_lens);
    if (value <= kLargest) continue;
    const char* name = kernels::OutputName(output);
    return Invalid(v1::REFUSAL_REASON_OUTPUT_OVERFLOW,
                   absl::StrCat(name, " would hold ", value, ", more than int32's ", kLargest), name, value, kLargest);
  }
  return std::nullopt;
}

Check CheckReplyBytes(const ReplyLayout& layout, const RequestLimits& limits, Framing framing) {
  const int64_t bytes = static_cast<int64_t>(layout.wire_bytes());
  if (bytes > limits.max_reply_bytes) {
    return Invalid(
        v1::REFUSAL_REASON_REPLY_TOO_LARGE,
        absl::StrCat("the outputs take ", bytes, " bytes, more than max_reply_bytes ", limits.max_reply_bytes),
        "outputs", bytes, limits.max_reply_bytes);
  }
  if (framing != Framing::kStream && bytes > limits.max_unary_reply_bytes) {
    return Invalid(v1::REFUSAL_REASON_REPLY_TOO_LARGE,
                   absl::StrCat("the outputs take ", bytes, " bytes, more than max_unary_reply_bytes ",
                                limits.max_unary_reply_bytes, "; ExpandStream returns them in chunks"),
                   "outputs", bytes, limits.max_unary_reply_bytes);
  }
  return std::nullopt;
}

}  // namespace

Refusal Malformed(const std::string& what, int64_t bytes) {
  return Invalid(v1::REFUSAL_REASON_MALFORMED, absl::StrCat("the message of ", bytes, " bytes is ", what), /*field=*/"",
                 bytes, /*limit=*/0);
}

std::optional<Refusal> Decode(const grpc::ByteBuffer& bytes, google::protobuf::MessageLite* message) {
  const auto malformed = [&] {
    return Malformed(absl::StrCat("no ", message->GetTypeName()), static_cast<int64_t>(bytes.Length()));
  };
  if (grpc::Slice slice; bytes.TrySingleSlice(&slice).ok()) {
    if (message->ParseFromArray(slice.begin(), static_cast<int>(slice.size()))) return std::nullopt;
    return malformed();
  }
  grpc::ByteBuffer source = bytes;  // of which only the slices' references are copied
  grpc::ProtoBufferReader reader(&source);
  if (reader.status().ok() && message->ParseFromZeroCopyStream(&reader)) return std::nullopt;
  return malformed();
}

std::optional<Refusal> Validate(const v1::ExpandRequest& request, const RequestLimits& limits, Framing framing,
                                Expansion* expansion) {
  Expansion& e = *expansion;
  e.request_id = request.request_id();
  e.include_timing = request.include_timing();
  e.spec = {.nsa_index_topk = request.nsa_index_topk(), .mode = kernels::SequenceMode::kRepeat, .outputs = {}};
  e.extend_seq_lens = {request.extend_seq_lens().data(), static_cast<size_t>(request.extend_seq_lens_size())};
  e.seq_lens = {request.seq_lens().data(), static_cast<size_t>(request.seq_lens_size())};

  if (Check refusal = CheckLengths(e, limits)) return refusal;
  if (Check refusal = ReadMode(request, &e.spec)) return refusal;
  if (Check refusal = ReadOutputs(request, &e.spec)) return refusal;
  return Measure(limits, framing, {}, expansion);
}

std::optional<Refusal> CheckLengths(const Expansion& expansion, const RequestLimits& limits) {
  if (Check refusal = CheckSizes(expansion, limits)) return refusal;
  if (Check refusal = CheckValues("extend_seq_lens", expansion.extend_seq_lens)) return refusal;
  return CheckValues("seq_lens", expansion.seq_lens);
}

std::optional<Refusal> Measure(const RequestLimits& limits, Framing framing, std::string inference_head,
                               Expansion* expansion) {
  Expansion& e = *expansion;
  if (Check refusal = CheckTopK(e.spec)) return refusal;
  e.total_tokens = kernels::Sum(e.extend_seq_lens);
  if (Check refusal = CheckTokens(e.total_tokens, limits)) return refusal;
  if (Check refusal = CheckOverflow(e)) return refusal;

  e.layout = ReplyLayout(e.spec.outputs, static_cast<int64_t>(e.seq_lens.size()), e.total_tokens, framing,
                         std::move(inference_head));
  return CheckReplyBytes(e.layout, limits, framing);
}

}  // namespace nsa::metadata::server
