#include "server/codec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace nsa::metadata::server {
namespace {

using ::testing::HasSubstr;

v1::ExpandRequest Good() {
  v1::ExpandRequest request;
  for (int q : {3, 2}) request.add_extend_seq_lens(q);
  for (int s : {10, 4}) request.add_seq_lens(s);
  request.set_nsa_index_topk(2048);
  return request;
}

std::optional<Refusal> Judge(const v1::ExpandRequest& request, const RequestLimits& limits = {},
                             Framing framing = Framing::kUnary) {
  Expansion expansion;
  return Validate(request, limits, framing, &expansion);
}

void ExpectInvalid(const std::optional<Refusal>& refusal, v1::RefusalReason reason, const std::string& field,
                   int64_t value, int64_t limit) {
  ASSERT_TRUE(refusal.has_value()) << "nothing was refused, expected " << v1::RefusalReason_Name(reason);
  EXPECT_EQ(refusal->code, grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refusal->reason, reason) << refusal->message;
  EXPECT_EQ(refusal->field, field);
  EXPECT_EQ(refusal->value, value);
  EXPECT_EQ(refusal->limit, limit);
  EXPECT_THAT(refusal->message, HasSubstr(std::to_string(value)));
  EXPECT_THAT(refusal->message, HasSubstr(std::to_string(limit)));
}

TEST(CodecTest, FillsInWhatIsUnset) {
  Expansion expansion;
  ASSERT_FALSE(Validate(Good(), {}, Framing::kUnary, &expansion));
  EXPECT_EQ(expansion.spec.mode, kernels::SequenceMode::kRepeat);
  EXPECT_EQ(expansion.spec.outputs,
            (kernels::OutputSet{kernels::Output::kSeqlensExpanded, kernels::Output::kNsaCacheSeqlens}));
  EXPECT_EQ(expansion.total_tokens, 5);
}

TEST(CodecTest, CountsDuplicateOutputsOnce) {
  v1::ExpandRequest request = Good();
  for (int i = 0; i < 1'000; ++i) request.add_outputs(v1::OUTPUT_KE);
  Expansion expansion;
  ASSERT_FALSE(Validate(request, {}, Framing::kUnary, &expansion));
  EXPECT_EQ(expansion.spec.outputs, kernels::OutputSet{kernels::Output::kKe});
}

TEST(CodecTest, TakesAnEmptyBatch) {
  EXPECT_FALSE(Judge([] {
    v1::ExpandRequest request;
    request.set_nsa_index_topk(1);
    return request;
  }()));
}

TEST(CodecTest, RefusesLengthsOfUnequalSize) {
  v1::ExpandRequest request = Good();
  request.add_seq_lens(1);
  ExpectInvalid(Judge(request), v1::REFUSAL_REASON_LENGTHS_DIFFER, "seq_lens", 3, 2);
}

TEST(CodecTest, RefusesNegativeLengthsWhereverTheyAre) {
  v1::ExpandRequest request = Good();
  request.set_extend_seq_lens(1, -7);
  ExpectInvalid(Judge(request), v1::REFUSAL_REASON_NEGATIVE_LENGTH, "extend_seq_lens[1]", -7, 0);
  request = Good();
  request.set_seq_lens(0, INT32_MIN);
  ExpectInvalid(Judge(request), v1::REFUSAL_REASON_NEGATIVE_LENGTH, "seq_lens[0]", INT32_MIN, 0);
}

TEST(CodecTest, RefusesATopKBelowOneOnlyWhereItIsNeeded) {
  v1::ExpandRequest request = Good();
  request.set_nsa_index_topk(0);
  ExpectInvalid(Judge(request), v1::REFUSAL_REASON_TOP_K_TOO_SMALL, "nsa_index_topk", 0, 1);
  request.add_outputs(v1::OUTPUT_NSA_CU_SEQLENS_K);
  ExpectInvalid(Judge(request), v1::REFUSAL_REASON_TOP_K_TOO_SMALL, "nsa_index_topk", 0, 1);
  request.set_outputs(0, v1::OUTPUT_POSITIONS);
  EXPECT_FALSE(Judge(request));
}

TEST(CodecTest, RefusesUnknownEnumValues) {
  v1::ExpandRequest request = Good();
  request.set_mode(static_cast<v1::SequenceMode>(3));
  ExpectInvalid(Judge(request), v1::REFUSAL_REASON_UNKNOWN_ENUM, "mode", 3, 2);
  request = Good();
  request.add_outputs(v1::OUTPUT_KS);
  request.add_outputs(v1::OUTPUT_UNSPECIFIED);
  ExpectInvalid(Judge(request), v1::REFUSAL_REASON_UNKNOWN_ENUM, "outputs[1]", 0, 9);
  request.set_outputs(1, static_cast<v1::Output>(-4));
  ExpectInvalid(Judge(request), v1::REFUSAL_REASON_UNKNOWN_ENUM, "outputs[1]", -4, 9);
}

TEST(CodecTest, RefusesMoreSequencesOrTokensThanTheLimits) {
  ExpectInvalid(Judge(Good(), {.max_sequences = 1}), v1::REFUSAL_REASON_TOO_MANY_SEQUENCES, "extend_seq_lens", 2, 1);
  ExpectInvalid(Judge(Good(), {.max_tokens = 4}), v1::REFUSAL_REASON_TOO_MANY_TOKENS, "extend_seq_lens", 5, 4);
  EXPECT_FALSE(Judge(Good(), {.max_sequences = 2, .max_tokens = 5}));
}

TEST(CodecTest, CountsTokensPastInt32) {
  v1::ExpandRequest request = Good();
  request.set_extend_seq_lens(0, INT32_MAX);
  request.set_extend_seq_lens(1, INT32_MAX);
  ExpectInvalid(Judge(request), v1::REFUSAL_REASON_TOO_MANY_TOKENS, "extend_seq_lens", int64_t{2} * INT32_MAX,
                4'194'304);
}

TEST(CodecTest, RefusesAnOverflowOnlyOfAnOutputThatIsAsked) {
  v1::ExpandRequest request = Good();
  request.set_seq_lens(0, INT32_MAX);
  EXPECT_FALSE(Judge(request));
  request.add_outputs(v1::OUTPUT_CU_SEQLENS_K);
  ExpectInvalid(Judge(request), v1::REFUSAL_REASON_OUTPUT_OVERFLOW, "cu_seqlens_k", int64_t{INT32_MAX} + 4, INT32_MAX);
}

TEST(CodecTest, RefusesAReplyOverItsLimitsAndNamesTheStream) {
  v1::ExpandRequest request = Good();
  request.set_extend_seq_lens(0, 1'000'000);
  const std::optional<Refusal> unary = Judge(request);
  ASSERT_TRUE(unary.has_value());
  EXPECT_EQ(unary->reason, v1::REFUSAL_REASON_REPLY_TOO_LARGE);
  EXPECT_EQ(unary->limit, RequestLimits().max_unary_reply_bytes);
  EXPECT_GE(unary->value, 8'000'016);
  EXPECT_THAT(unary->message, HasSubstr("ExpandStream"));
  EXPECT_FALSE(Judge(request, {}, Framing::kStream));
  const std::optional<Refusal> any = Judge(request, {.max_reply_bytes = 1'000'000}, Framing::kStream);
  ASSERT_TRUE(any.has_value());
  EXPECT_EQ(any->reason, v1::REFUSAL_REASON_REPLY_TOO_LARGE);
  EXPECT_EQ(any->limit, 1'000'000);
}

TEST(CodecTest, RefusesBytesThatAreNoRequest) {
  v1::ExpandRequest request;
  const grpc::Slice slice(std::string("\x12\xff\xff\xff\xff\x0f", 6));
  grpc::ByteBuffer bytes(&slice, 1);
  const std::optional<Refusal> refusal = Decode(bytes, &request);
  ASSERT_TRUE(refusal.has_value());
  EXPECT_EQ(refusal->reason, v1::REFUSAL_REASON_MALFORMED);
  EXPECT_EQ(refusal->value, 6);
}

TEST(CodecTest, DecodesARequestThatIsSpreadOverSlices) {
  v1::ExpandRequest sent = Good();
  for (int i = 0; i < 1'000; ++i) {
    sent.add_extend_seq_lens(i);
    sent.add_seq_lens(2 * i);
  }
  const std::string encoded = sent.SerializeAsString();
  std::vector<grpc::Slice> slices;
  for (size_t at = 0; at < encoded.size(); at += 7) slices.emplace_back(encoded.substr(at, 7));
  grpc::ByteBuffer bytes(slices.data(), slices.size());
  v1::ExpandRequest request;
  ASSERT_FALSE(Decode(bytes, &request));
  EXPECT_EQ(request.SerializeAsString(), encoded);
}

template <typename Detail>
std::optional<Detail> Find(const grpc::Status& status) {
  google::rpc::Status details;
  EXPECT_TRUE(details.ParseFromString(status.error_details()));
  for (const auto& any : details.details()) {
    Detail detail;
    if (any.UnpackTo(&detail)) return detail;
  }
  return std::nullopt;
}

TEST(RefusalTest, CarriesTheStandardDetails) {
  const grpc::Status status =
      ToStatus(Invalid(v1::REFUSAL_REASON_TOP_K_TOO_SMALL, "too small", "nsa_index_topk", -3, 1));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  const auto info = Find<google::rpc::ErrorInfo>(status);
  ASSERT_TRUE(info.has_value());
  EXPECT_EQ(info->reason(), "TOP_K_TOO_SMALL");
  EXPECT_EQ(info->domain(), "nsa.metadata.v1");
  EXPECT_EQ(info->metadata().at("field"), "nsa_index_topk");
  EXPECT_EQ(info->metadata().at("value"), "-3");
  EXPECT_EQ(info->metadata().at("limit"), "1");
  const auto bad = Find<google::rpc::BadRequest>(status);
  ASSERT_TRUE(bad.has_value());
  EXPECT_EQ(bad->field_violations(0).field(), "nsa_index_topk");
  EXPECT_FALSE(Find<google::rpc::RetryInfo>(status)) << "a permanent refusal must not invite to try again";
}

TEST(RefusalTest, SaysWhenToTryAgain) {
  const grpc::Status status =
      ToStatus(Later(v1::REFUSAL_REASON_QUEUE_FULL, "full", 5, 5, std::chrono::milliseconds(1'050)));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  const auto retry = Find<google::rpc::RetryInfo>(status);
  ASSERT_TRUE(retry.has_value());
  EXPECT_EQ(retry->retry_delay().seconds(), 1);
  EXPECT_EQ(retry->retry_delay().nanos(), 50'000'000);
}

TEST(RefusalTest, LabelsReasonsAsTheMetricsDo) {
  EXPECT_EQ(ReasonLabel(v1::REFUSAL_REASON_QUEUE_FULL), "queue_full");
  EXPECT_EQ(ReasonLabel(v1::REFUSAL_REASON_TOP_K_TOO_SMALL), "top_k_too_small");
}

}  // namespace
}  // namespace nsa::metadata::server
