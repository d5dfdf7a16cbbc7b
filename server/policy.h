// Who may call what.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "nsa/metadata/policy/v1/policy.pb.h"

namespace nsa::metadata::server {

// Allows what one of its rules does, and nothing else.
class Policy {
 public:
  // `json` is an AuthorizationPolicy. INVALID_ARGUMENT saying what is wrong with it: its form, a field that is none, an
  // unknown method, a rule without methods or callers.
  static absl::StatusOr<Policy> Parse(const std::string& json);

  // Whether a caller of one of these names may call `method`, as "Expand".
  bool Allows(std::string_view method, const std::vector<std::string_view>& names) const;

 private:
  explicit Policy(policy::v1::AuthorizationPolicy proto) : proto_(std::move(proto)) {}
  policy::v1::AuthorizationPolicy proto_;
};

}  // namespace nsa::metadata::server
