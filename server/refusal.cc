#include "server/refusal.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "google/protobuf/any.pb.h"
#include "google/protobuf/io/coded_stream.h"
#include "google/protobuf/util/time_util.h"
#include "google/protobuf/wire_format_lite.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace nsa::metadata::server {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedOutputStream;

// The reason's name without its prefix.
std::string ReasonName(v1::RefusalReason reason) {
  static constexpr char kPrefix[] = "REFUSAL_REASON_";
  return v1::RefusalReason_Name(reason).substr(sizeof(kPrefix) - 1);
}

void SetDuration(std::chrono::milliseconds from, google::protobuf::Duration* to) {
  *to = google::protobuf::util::TimeUtil::MillisecondsToDuration(from.count());
}

// The details are written as bytes: a message packed in a message three deep, with a map, was a quarter of what this
// server itself does for a refused call.
void AppendTag(int field, WireFormatLite::WireType type, std::string* to) {
  uint8_t tag[5];
  uint8_t* const end = WireFormatLite::WriteTagToArray(field, type, tag);
  to->append(tag, end);
}

// A string, bytes or message field.
void AppendField(int field, std::string_view bytes, std::string* to) {
  AppendTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED, to);
  uint8_t size[5];
  uint8_t* const end = CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(bytes.size()), size);
  to->append(size, end);
  to->append(bytes);
}

// An entry of ErrorInfo's map.
void AppendMetadata(std::string_view key, std::string_view value, std::string* info) {
  std::string entry;
  AppendField(1, key, &entry);
  AppendField(2, value, &entry);
  AppendField(google::rpc::ErrorInfo::kMetadataFieldNumber, entry, info);
}

// A google.protobuf.Any among a google.rpc.Status's details.
void AppendDetail(std::string_view type, std::string_view message, std::string* status) {
  std::string any;
  AppendField(google::protobuf::Any::kTypeUrlFieldNumber, std::string("type.googleapis.com/").append(type), &any);
  AppendField(google::protobuf::Any::kValueFieldNumber, message, &any);
  AppendField(google::rpc::Status::kDetailsFieldNumber, any, status);
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

Refusal Draining() {
  return Later(v1::REFUSAL_REASON_DRAINING, "the server is shutting down", 0, 0, std::chrono::milliseconds(50));
}

Refusal NotAllowed(std::string message) {
  return {.code = grpc::StatusCode::PERMISSION_DENIED,
          .reason = v1::REFUSAL_REASON_NOT_ALLOWED,
          .message = std::move(message),
          .field = ""};
}

Refusal DeadlinePassed(bool callers, Clock::duration had, Clock::duration waited) {
  using Milliseconds = std::chrono::milliseconds;
  const auto text = [](Clock::duration duration) {
    return absl::FormatDuration(absl::FromChrono(std::chrono::duration_cast<std::chrono::microseconds>(duration)));
  };
  had = std::max(had, Clock::duration::zero());
  return {.code = grpc::StatusCode::DEADLINE_EXCEEDED,
          .reason = v1::REFUSAL_REASON_DEADLINE,
          .message = absl::StrCat(callers ? "the caller's deadline" : "max_rpc_duration",
                                  " passed before the request was launched: it had ", text(had),
                                  " from its arrival, and has been there for ", text(waited)),
          .field = "",
          .value = std::chrono::duration_cast<Milliseconds>(waited).count(),
          .limit = std::chrono::duration_cast<Milliseconds>(had).count()};
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
  using Status = google::rpc::Status;
  using ErrorInfo = google::rpc::ErrorInfo;
  using BadRequest = google::rpc::BadRequest;
  std::string info;
  AppendField(ErrorInfo::kReasonFieldNumber, ReasonName(refusal.reason), &info);
  AppendField(ErrorInfo::kDomainFieldNumber, kErrorDomain, &info);
  AppendMetadata("field", refusal.field, &info);
  AppendMetadata("value", std::to_string(refusal.value), &info);
  AppendMetadata("limit", std::to_string(refusal.limit), &info);

  std::string status;
  AppendTag(Status::kCodeFieldNumber, WireFormatLite::WIRETYPE_VARINT, &status);
  status.push_back(static_cast<char>(refusal.code));
  AppendField(Status::kMessageFieldNumber, refusal.message, &status);
  AppendDetail("google.rpc.ErrorInfo", info, &status);
  if (!refusal.field.empty()) {
    std::string violation;
    AppendField(BadRequest::FieldViolation::kFieldFieldNumber, refusal.field, &violation);
    AppendField(BadRequest::FieldViolation::kDescriptionFieldNumber, refusal.message, &violation);
    std::string bad_request;
    AppendField(BadRequest::kFieldViolationsFieldNumber, violation, &bad_request);
    AppendDetail("google.rpc.BadRequest", bad_request, &status);
  }
  if (refusal.retry_after.count() > 0) {
    google::rpc::RetryInfo retry;
    SetDuration(refusal.retry_after, retry.mutable_retry_delay());
    AppendDetail("google.rpc.RetryInfo", retry.SerializeAsString(), &status);
  }
  return grpc::Status(refusal.code, refusal.message, status);
}

void AddPushback(const Refusal& refusal, grpc::ServerContextBase& call) {
  if (refusal.retry_after.count() == 0) return;
  call.AddTrailingMetadata("grpc-retry-pushback-ms", std::to_string(refusal.retry_after.count()));
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
