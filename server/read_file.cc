#include "server/read_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>

#include "absl/strings/str_cat.h"

namespace nsa::metadata::server {

absl::StatusOr<std::string> ReadFile(const char* flag, const std::string& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  // A folder opens, and fails to be read.
  if (file.good() || file.eof()) return text;
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", path, " can't be read: ", strerror(errno)));
}

}  // namespace nsa::metadata::server
