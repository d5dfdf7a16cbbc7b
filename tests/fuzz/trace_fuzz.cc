// A trace's text: it is refused with its line, or holds what replay can send.

#include <algorithm>
#include <sstream>
#include <string>

#include "client/trace.h"
#include "tests/fuzz/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nsa::metadata;  // NOLINT: a function outside of it
  std::istringstream text(std::string(reinterpret_cast<const char*>(data), size));
  const auto trace = client::ParseTrace(text, "trace");
  if (!trace.ok()) {
    testing::Check(trace.status().message().find("trace:") == 0, trace.status().ToString());
    return 0;
  }
  testing::Check(!trace->empty(), "a trace holds something");
  testing::Check(std::ranges::is_sorted(*trace, {}, &client::Invocation::arrival), "in the order of arrival");
  for (const client::Invocation& invocation : *trace) {
    const int64_t sum = int64_t{invocation.context_tokens} + invocation.generated_tokens;
    testing::Check(invocation.context_tokens >= 0 && invocation.generated_tokens >= 0 && sum <= INT32_MAX, "tokens");
  }
  return 0;
}
