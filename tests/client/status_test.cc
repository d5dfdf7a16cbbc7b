#include "client/status.h"

#include <gtest/gtest.h>

#include "tests/client/fake_server.h"

namespace nsa::metadata::client {
namespace {

TEST(StatusTest, KeepsCodeAndMessage) {
  EXPECT_EQ(ToAbslStatus(grpc::Status::OK), absl::OkStatus());
  EXPECT_EQ(ToAbslStatus({grpc::StatusCode::PERMISSION_DENIED, "not you"}), absl::PermissionDeniedError("not you"));
  EXPECT_EQ(ToAbslStatus({grpc::StatusCode::DEADLINE_EXCEEDED, "late"}), absl::DeadlineExceededError("late"));
}

TEST(StatusTest, PutsDetailsUnderTheirTypeUrls) {
  const absl::Status status =
      ToAbslStatus(Refusal(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "", 4096, 4096, /*retry_after_seconds=*/2));
  EXPECT_TRUE(status.GetPayload("type.googleapis.com/google.rpc.ErrorInfo").has_value()) << status;
  EXPECT_TRUE(status.GetPayload("type.googleapis.com/google.rpc.RetryInfo").has_value()) << status;
}

TEST(StatusTest, ReadsAPermanentRefusal) {
  const auto violation =
      ViolationOf(ToAbslStatus(Refusal(grpc::StatusCode::INVALID_ARGUMENT, "NEGATIVE_LENGTH", "seq_lens[3]", -5, 0)));
  ASSERT_TRUE(violation.has_value());
  EXPECT_EQ(violation->reason, v1::REFUSAL_REASON_NEGATIVE_LENGTH);
  EXPECT_EQ(violation->reason_name, "NEGATIVE_LENGTH");
  EXPECT_EQ(violation->field, "seq_lens[3]");
  EXPECT_EQ(violation->value, -5);
  EXPECT_EQ(violation->limit, 0);
  EXPECT_FALSE(violation->retry_after.has_value());
}

TEST(StatusTest, ReadsWhenToTryAgain) {
  const auto violation = ViolationOf(
      ToAbslStatus(Refusal(grpc::StatusCode::UNAVAILABLE, "DRAINING", "", 0, 0, /*retry_after_seconds=*/2)));
  ASSERT_TRUE(violation.has_value());
  EXPECT_EQ(violation->retry_after, absl::Seconds(2));
}

TEST(StatusTest, KeepsTheNameOfAReasonItDoesNotKnow) {
  const auto violation =
      ViolationOf(ToAbslStatus(Refusal(grpc::StatusCode::INVALID_ARGUMENT, "MOON_PHASE", "moon", 1, 0)));
  ASSERT_TRUE(violation.has_value());
  EXPECT_EQ(violation->reason, v1::REFUSAL_REASON_UNSPECIFIED);
  EXPECT_EQ(violation->reason_name, "MOON_PHASE");
}

TEST(StatusTest, ReadsTheSameFromARefusalOnAStream) {
  v1::Refusal refusal;
  refusal.set_code(grpc::StatusCode::UNAVAILABLE);
  refusal.set_message("full");
  refusal.set_reason(v1::REFUSAL_REASON_QUEUE_FULL);
  refusal.set_field("extend_seq_lens");
  refusal.set_value(4097);
  refusal.set_limit(4096);
  refusal.mutable_retry_after()->set_nanos(50'000'000);
  const absl::Status status = ToAbslStatus(refusal);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "full");
  EXPECT_TRUE(status.GetPayload("type.googleapis.com/google.rpc.BadRequest").has_value()) << status;
  const auto violation = ViolationOf(status);
  ASSERT_TRUE(violation.has_value());
  EXPECT_EQ(violation->reason, v1::REFUSAL_REASON_QUEUE_FULL);
  EXPECT_EQ(violation->reason_name, "QUEUE_FULL");
  EXPECT_EQ(violation->field, "extend_seq_lens");
  EXPECT_EQ(violation->value, 4097);
  EXPECT_EQ(violation->limit, 4096);
  EXPECT_EQ(violation->retry_after, absl::Milliseconds(50));
}

TEST(StatusTest, ARefusalOnAStreamIsNeverOk) {
  for (const int code : {0, 17, -1}) {
    v1::Refusal refusal;
    refusal.set_code(code);
    EXPECT_EQ(ToAbslStatus(refusal).code(), absl::StatusCode::kUnknown) << "for code " << code;
  }
}

TEST(StatusTest, AReasonOfANewerServerOnAStreamHasItsNumberForAName) {
  v1::Refusal refusal;
  refusal.set_code(grpc::StatusCode::INVALID_ARGUMENT);
  refusal.set_reason(static_cast<v1::RefusalReason>(99));
  const auto violation = ViolationOf(ToAbslStatus(refusal));
  ASSERT_TRUE(violation.has_value());
  EXPECT_EQ(violation->reason, v1::REFUSAL_REASON_UNSPECIFIED);
  EXPECT_EQ(violation->reason_name, "99");
  EXPECT_FALSE(violation->retry_after.has_value());
}

TEST(StatusTest, FindsNoRefusalInOtherFailures) {
  EXPECT_FALSE(ViolationOf(absl::OkStatus()).has_value());
  EXPECT_FALSE(ViolationOf(ToAbslStatus({grpc::StatusCode::UNAVAILABLE, "connection refused"})).has_value());
  EXPECT_FALSE(ViolationOf(ToAbslStatus({grpc::StatusCode::UNAVAILABLE, "odd", "not a status"})).has_value());
}

}  // namespace
}  // namespace nsa::metadata::client
