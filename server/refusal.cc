#include "server/refusal.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "google/protobuf/util/time_util.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace nsa::metadata::server {
namespace {

// The reason's name without its prefix.
std::string ReasonName(v1::RefusalReason reason) {
  static constexpr char kPrefix[] = "REFUSAL_REASON_";
  return v1::RefusalReason_Name(reason).substr(sizeof(kPrefix) - 1);
}

void SetDuration(std::chrono::milliseconds from, google::protobuf::Duration* to) {
  *to = google::protobuf::util::TimeUtil::MillisecondsToDuration(from.count());
}

}  // namespace

Refusal Invalid(v1::RefusalReason reason, std::string message, std::string field, int64_t value, int64_t limit) {
  return {.code = grpc::StatusCode::INVALID_ARGUMENT,
          .reason = reason,
          .message = std::move(message),
          .field = std::move(field),
          .value = value,
          .limit = limit};
}

Refusal Later(v1::RefusalReason reason, std::string message, int64_t value, int64_t limit,
              std::chrono::milliseconds retry_after) {
  return {.code = grpc::StatusCode::UNAVAILABLE,
          .reason = reason,
          .message = std::move(message),
          .field = "",
          .value = value,
          .limit = limit,
          .retry_after = retry_after};
}

Refusal DeadlinePassed() {
  return {.code = grpc::StatusCode::DEADLINE_EXCEEDED,
          .reason = v1::REFUSAL_REASON_DEADLINE,
          .message = "the deadline passed before the request was launched",
          .field = ""};
}

Refusal Cancelled() {
  return {.code = grpc::StatusCode::CANCELLED,
          .reason = v1::REFUSAL_REASON_CANCELLED,
          .message = "the caller cancelled the request",
          .field = ""};
}

Refusal InternalFault(std::string message) {
  return {.code = grpc::StatusCode::INTERNAL,
          .reason = v1::REFUSAL_REASON_INTERNAL,
          .message = std::move(message),
          .field = ""};
}

grpc::Status ToStatus(const Refusal& refusal) {
  google::rpc::Status status;
  status.set_code(refusal.code);
  status.set_message(refusal.message);

  google::rpc::ErrorInfo info;
  info.set_domain(kErrorDomain);
  info.set_reason(ReasonName(refusal.reason));
  auto& metadata = *info.mutable_metadata();
  metadata["field"] = refusal.field;
  metadata["value"] = std::to_string(refusal.value);
  metadata["limit"] = std::to_string(refusal.limit);
  status.add_details()->PackFrom(info);

  if (!refusal.field.empty()) {
    google::rpc::BadRequest bad_request;
    auto* violation = bad_request.add_field_violations();
    violation->set_field(refusal.field);
    violation->set_description(refusal.message);
    status.add_details()->PackFrom(bad_request);
  }
  if (refusal.retry_after.count() > 0) {
    google::rpc::RetryInfo retry;
    SetDuration(refusal.retry_after, retry.mutable_retry_delay());
    status.add_details()->PackFrom(retry);
  }
  return grpc::Status(refusal.code, refusal.message, status.SerializeAsString());
}

v1::Refusal ToProto(const Refusal& refusal, uint64_t request_id) {
  v1::Refusal proto;
  proto.set_request_id(request_id);
  proto.set_code(refusal.code);
  proto.set_reason(refusal.reason);
  proto.set_message(refusal.message);
  proto.set_field(refusal.field);
  proto.set_value(refusal.value);
  proto.set_limit(refusal.limit);
  if (refusal.retry_after.count() > 0) SetDuration(refusal.retry_after, proto.mutable_retry_after());
  return proto;
}

std::string ReasonLabel(v1::RefusalReason reason) { return absl::AsciiStrToLower(ReasonName(reason)); }

}  // namespace nsa::metadata::server
