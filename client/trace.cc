#include "client/trace.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace nsa::metadata::client {
namespace {

constexpr char kHeader[] = "TIMESTAMP,ContextTokens,GeneratedTokens";
constexpr absl::Time kYear10000 = absl::FromUnixSeconds(253'402'300'800);
constexpr int32_t kMaxTokens = std::numeric_limits<int32_t>::max();

absl::Status ParseArrival(absl::string_view text, absl::Time& arrival) {
  std::string why;
  // The range leaves out the names that abseil has for times, and years with which steps could not be counted.
  if (!absl::ParseTime("%Y-%m-%d %H:%M:%E*S", text, &arrival, &why) || arrival < absl::UnixEpoch() ||
      arrival >= kYear10000) {
    return absl::InvalidArgumentError(
        absl::StrCat("TIMESTAMP is \"", text, "\", want a time as \"2023-11-16 18:15:46.6805900\""));
  }
  return absl::OkStatus();
}

absl::Status ParseTokens(absl::string_view column, absl::string_view text, int32_t& tokens) {
  if (!absl::SimpleAtoi(text, &tokens) || tokens < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat(column, " is \"", text, "\", want a whole number from 0 to ", kMaxTokens));
  }
  return absl::OkStatus();
}

absl::StatusOr<Invocation> ParseInvocation(absl::string_view line) {
  const std::vector<absl::string_view> columns = absl::StrSplit(line, ',');
  if (columns.size() != 3) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", line, "\" has ", columns.size(), " columns, want 3: ", kHeader));
  }
  Invocation invocation;
  absl::Status status = ParseArrival(columns[0], invocation.arrival);
  if (status.ok()) status = ParseTokens("ContextTokens", columns[1], invocation.context_tokens);
  if (status.ok()) status = ParseTokens("GeneratedTokens", columns[2], invocation.generated_tokens);
  if (!status.ok()) return status;
  if (invocation.generated_tokens > kMaxTokens - invocation.context_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("ContextTokens and GeneratedTokens, ", columns[1], " and ",
                                                   columns[2], ", have a sum over ", kMaxTokens));
  }
  return invocation;
}

}  // namespace

absl::StatusOr<std::vector<Invocation>> ReadTrace(const std::string& path) {
  std::ifstream in(path);
  if (!in) return absl::NotFoundError(absl::StrCat(path, ": ", std::strerror(errno)));
  return ParseTrace(in, path);
}

absl::StatusOr<std::vector<Invocation>> ParseTrace(std::istream& in, const std::string& name) {
  std::vector<Invocation> invocations;
  std::string buffer;
  for (int64_t number = 1; std::getline(in, buffer); ++number) {
    const absl::string_view line = absl::StripSuffix(buffer, "\r");
    if (number == 1) {
      if (line == kHeader) continue;
      return absl::InvalidArgumentError(absl::StrCat(name, ":1: the header is \"", line, "\", want \"", kHeader, "\""));
    }
    if (line.empty()) continue;
    const absl::StatusOr<Invocation> invocation = ParseInvocation(line);
    if (!invocation.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(name, ":", number, ": ", invocation.status().message()));
    }
    invocations.push_back(*invocation);
  }
  if (in.bad()) return absl::NotFoundError(absl::StrCat(name, ": cannot be read to its end"));
  if (invocations.empty()) return absl::InvalidArgumentError(absl::StrCat(name, ": holds no invocation"));
  std::ranges::stable_sort(invocations, {}, &Invocation::arrival);
  return invocations;
}

}  // namespace nsa::metadata::client
