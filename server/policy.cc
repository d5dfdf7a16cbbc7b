#include "server/policy.h"

#include <google/protobuf/util/json_util.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "inference/inference.pb.h"
#include "nsa/metadata/v1/metadata.pb.h"

namespace nsa::metadata::server {
namespace {

constexpr char kAny[] = "*";

bool IsMethod(const std::string& name) {
  const auto* service = v1::GetServerInfoRequest::descriptor()->file()->service(0);
  const auto* inference = ::inference::ModelInferRequest::descriptor()->file()->service(0);
  return service->FindMethodByName(name) != nullptr || inference->FindMethodByName(name) != nullptr;
}

absl::Status Wrong(int rule, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat("rules[", rule, "]", std::string(what)));
}

absl::Status Check(const policy::v1::AuthorizationPolicy& proto) {
  for (int i = 0; i < proto.rules_size(); ++i) {
    const policy::v1::Rule& rule = proto.rules(i);
    if (rule.methods().empty()) return Wrong(i, ".methods is empty");
    if (rule.callers().empty()) return Wrong(i, ".callers is empty");
    for (const std::string& method : rule.methods()) {
      if (method != kAny && !IsMethod(method)) return Wrong(i, absl::StrCat(".methods: there is no \"", method, "\""));
    }
    for (const std::string& caller : rule.callers()) {
      const size_t star = caller.find('*', 1);
      if (caller.empty() || (star != std::string::npos && (star + 1 != caller.size() || caller.front() == '*'))) {
        return Wrong(i, absl::StrCat(".callers: \"", caller, "\" has to be a name, with one * at an end at most"));
      }
    }
  }
  return absl::OkStatus();
}

bool Matches(std::string_view pattern, std::string_view name) {
  if (pattern == kAny) return true;
  if (pattern.ends_with('*')) return name.starts_with(pattern.substr(0, pattern.size() - 1));
  if (pattern.starts_with('*')) return name.ends_with(pattern.substr(1));
  return pattern == name;
}

}  // namespace

absl::StatusOr<Policy> Policy::Parse(const std::string& json) {
  policy::v1::AuthorizationPolicy proto;
  const auto status = google::protobuf::util::JsonStringToMessage(json, &proto);
  std::string wrong(status.message());
  if (status.ok()) wrong = std::string(Check(proto).message());
  if (wrong.empty()) return Policy(std::move(proto));
  // A picture of where it is, over several lines, or a name with line ends.
  return absl::InvalidArgumentError(absl::StrReplaceAll(wrong, {{"\n", " "}}));
}

bool Policy::Allows(std::string_view method, const std::vector<std::string_view>& names) const {
  return std::ranges::any_of(proto_.rules(), [&](const policy::v1::Rule& rule) {
    const bool has_method = std::ranges::any_of(
        rule.methods(), [&](const std::string& allowed) { return allowed == kAny || allowed == method; });
    return has_method && std::ranges::any_of(rule.callers(), [&](const std::string& pattern) {
             return std::ranges::any_of(names, [&](std::string_view name) { return Matches(pattern, name); });
           });
  });
}

}  // namespace nsa::metadata::server
