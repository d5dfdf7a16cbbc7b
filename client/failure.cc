#include "client/failure.h"

#include <cstdio>
#include <optional>

#include "absl/strings/str_cat.h"
#include "client/json.h"
#include "client/status.h"

namespace nsa::metadata::client {
namespace {

JsonObject FailureJson(const absl::Status& status, const std::optional<Violation>& violation) {
  JsonObject error;
  error.Add("code", absl::StatusCodeToString(status.code())).Add("message", std::string(status.message()));
  if (violation.has_value()) {
    error.Add("reason", violation->reason_name).Add("field", violation->field);
    error.Add("value", violation->value).Add("limit", violation->limit);
    if (violation->retry_after.has_value()) {
      error.Add("retry_after_s", absl::ToDoubleSeconds(*violation->retry_after));
    }
  }
  return JsonObject().Add("error", error);
}

}  // namespace

ExitCode ExitCodeOf(const absl::Status& status) {
  if (status.ok()) return kOk;
  if (absl::IsDeadlineExceeded(status)) return kDeadline;
  if (absl::IsUnavailable(status) && !ViolationOf(status).has_value()) return kUnreachable;
  return kRefused;
}

std::string ReasonOf(const absl::Status& status) {
  const std::optional<Violation> violation = ViolationOf(status);
  return violation.has_value() ? violation->reason_name : absl::StatusCodeToString(status.code());
}

void PrintFailure(const absl::Status& status, bool json) {
  const std::optional<Violation> violation = ViolationOf(status);
  if (json) {
    std::puts(FailureJson(status, violation).str().c_str());
    return;
  }
  std::string text = absl::StrCat(absl::StatusCodeToString(status.code()), ": ", status.message());
  if (violation.has_value()) {
    absl::StrAppend(&text, " (reason ", violation->reason_name);
    if (violation->retry_after.has_value()) {
      absl::StrAppend(&text, ", try again after ", absl::FormatDuration(*violation->retry_after));
    }
    absl::StrAppend(&text, ")");
  }
  std::fprintf(stderr, "%s\n", text.c_str());
}

ExitCode PrintUsageError(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return kUsage;
}

}  // namespace nsa::metadata::client
