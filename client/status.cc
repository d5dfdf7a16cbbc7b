#include "client/status.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace nsa::metadata::client {
namespace {

constexpr char kDomain[] = "nsa.metadata.v1";
constexpr char kReasonPrefix[] = "REFUSAL_REASON_";

template <typename Detail>
std::string TypeUrl() {
  return absl::StrCat("type.googleapis.com/", Detail::descriptor()->full_name());
}

// The detail of type `Detail` in `status`, or nothing.
template <typename Detail>
std::optional<Detail> DetailOf(const absl::Status& status) {
  const auto payload = status.GetPayload(TypeUrl<Detail>());
  Detail detail;
  if (!payload.has_value() || !detail.ParseFromString(std::string(*payload))) return std::nullopt;
  return detail;
}

template <typename Detail>
void SetDetail(const Detail& detail, absl::Status& status) {
  status.SetPayload(TypeUrl<Detail>(), absl::Cord(detail.SerializeAsString()));
}

// The name without its prefix; the number where this client is older than the server.
std::string ReasonName(v1::RefusalReason reason) {
  const std::string& name = v1::RefusalReason_Name(reason);
  return name.empty() ? absl::StrCat(reason) : name.substr(sizeof(kReasonPrefix) - 1);
}

std::string MetadataOf(const google::rpc::ErrorInfo& info, const std::string& key) {
  const auto entry = info.metadata().find(key);
  return entry == info.metadata().end() ? "" : entry->second;
}

int64_t NumberOf(const google::rpc::ErrorInfo& info, const std::string& key) {
  int64_t number = 0;
  return absl::SimpleAtoi(MetadataOf(info, key), &number) ? number : 0;
}

}  // namespace

absl::Status ToAbslStatus(const grpc::Status& status) {
  // The codes of the two are the same by design.
  absl::Status converted(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  google::rpc::Status details;
  if (converted.ok() || !details.ParseFromString(status.error_details())) return converted;
  for (const google::protobuf::Any& detail : details.details()) {
    converted.SetPayload(detail.type_url(), absl::Cord(detail.value()));
  }
  return converted;
}

absl::Status ToAbslStatus(const v1::Refusal& refusal) {
  // OK would be no refusal, and the codes end at 16.
  const bool is_error = refusal.code() > grpc::StatusCode::OK && refusal.code() <= grpc::StatusCode::UNAUTHENTICATED;
  absl::Status status(is_error ? static_cast<absl::StatusCode>(refusal.code()) : absl::StatusCode::kUnknown,
                      refusal.message());
  google::rpc::ErrorInfo info;
  info.set_domain(kDomain);
  info.set_reason(ReasonName(refusal.reason()));
  (*info.mutable_metadata())["field"] = refusal.field();
  (*info.mutable_metadata())["value"] = absl::StrCat(refusal.value());
  (*info.mutable_metadata())["limit"] = absl::StrCat(refusal.limit());
  SetDetail(info, status);
  if (!refusal.field().empty()) {
    google::rpc::BadRequest bad_request;
    auto* const violation = bad_request.add_field_violations();
    violation->set_field(refusal.field());
    violation->set_description(refusal.message());
    SetDetail(bad_request, status);
  }
  if (refusal.has_retry_after()) {
    google::rpc::RetryInfo retry;
    *retry.mutable_retry_delay() = refusal.retry_after();
    SetDetail(retry, status);
  }
  return status;
}

std::optional<Violation> ViolationOf(const absl::Status& status) {
  const std::optional<google::rpc::ErrorInfo> info = DetailOf<google::rpc::ErrorInfo>(status);
  if (!info.has_value() || info->domain() != kDomain) return std::nullopt;
  Violation violation;
  violation.reason_name = info->reason();
  if (!v1::RefusalReason_Parse(kReasonPrefix + info->reason(), &violation.reason)) {
    violation.reason = v1::REFUSAL_REASON_UNSPECIFIED;
  }
  violation.field = MetadataOf(*info, "field");
  violation.value = NumberOf(*info, "value");
  violation.limit = NumberOf(*info, "limit");
  if (const auto retry = DetailOf<google::rpc::RetryInfo>(status)) {
    violation.retry_after =
        absl::Seconds(retry->retry_delay().seconds()) + absl::Nanoseconds(retry->retry_delay().nanos());
  }
  return violation;
}

}  // namespace nsa::metadata::client
