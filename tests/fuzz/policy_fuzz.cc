// A policy's JSON: it is refused with a reason in one line, or answers for every caller.

#include <string>

#include "server/policy.h"
#include "tests/fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nsa::metadata;  // NOLINT: a function outside of it
  const auto policy = server::Policy::Parse(std::string(reinterpret_cast<const char*>(data), size));
  if (!policy.ok()) {
    const std::string why(policy.status().message());
    testing::Check(!why.empty() && why.find('\n') == std::string::npos, "a reason in one line: " + why);
    return 0;
  }
  testing::Check(!policy->Allows("Expand", {}), "nobody is allowed nothing");
  policy->Allows("Expand", {"spiffe://cluster.test/ns/inference/sa/engine", "engine.test"});
  policy->Allows("GetServerInfo", {""});
  return 0;
}
