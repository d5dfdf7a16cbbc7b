#include "client/status.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace nsa::metadata::client {
namespace {

constexpr char kDomain[] = "nsa.metadata.v1";

// The detail of type `Detail` in `status`, or nothing.
template <typename Detail>
std::optional<Detail> DetailOf(const absl::Status& status) {
  const auto payload = status.GetPayload(absl::StrCat("type.googleapis.com/", Detail::descriptor()->full_name()));
  Detail detail;
  if (!payload.has_value() || !detail.ParseFromString(std::string(*payload))) return std::nullopt;
  return detail;
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

std::optional<Violation> ViolationOf(const absl::Status& status) {
  const std::optional<google::rpc::ErrorInfo> info = DetailOf<google::rpc::ErrorInfo>(status);
  if (!info.has_value() || info->domain() != kDomain) return std::nullopt;
  Violation violation;
  violation.reason_name = info->reason();
  if (!v1::RefusalReason_Parse("REFUSAL_REASON_" + info->reason(), &violation.reason)) {
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
