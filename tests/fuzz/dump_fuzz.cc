// A dump's bytes, read and checked: refused with a reason, or compared.

#include <string>

#include "client/check.h"
#include "client/dump.h"
#include "tests/fuzz/check.h"

// The first byte says which format the rest has.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nsa::metadata;  // NOLINT: a function outside of it
  if (size == 0) return 0;
  const auto format = data[0] & 1 ? client::DumpFormat::kNpz : client::DumpFormat::kJson;
  const absl::StatusOr<client::Dump> dump =
      client::ParseDump({reinterpret_cast<const char*>(data) + 1, size - 1}, format);
  if (!dump.ok()) {
    testing::Check(!dump.status().message().empty(), "a refusal says why");
    return 0;
  }
  const absl::StatusOr<client::CheckResult> result = client::Check(*dump, {});
  if (!result.ok()) {
    testing::Check(!result.status().message().empty(), "a refusal says why");
    return 0;
  }
  bool right = true;
  for (const client::ArrayFinding& array : result->arrays) right = right && array.difference.empty();
  testing::Check(right == !result->matches.empty(), "what matches has no difference");
  return 0;
}
