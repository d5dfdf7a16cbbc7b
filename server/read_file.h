// Small files, whole.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace nsa::metadata::server {

// INVALID_ARGUMENT naming the flag that names the file, the file, and why it can't be read.
absl::StatusOr<std::string> ReadFile(const char* flag, const std::string& path);

}  // namespace nsa::metadata::server
