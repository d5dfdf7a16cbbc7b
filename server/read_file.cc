#include "server/read_file.h"

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "absl/strings/str_cat.h"

namespace nsa::metadata::server {

absl::StatusOr<std::string> ReadFile(const char* flag, const std::string& path) {
  const std::unique_ptr<FILE, int (*)(FILE*)> file(fopen(path.c_str(), "rbe"), &fclose);
  std::string text;
  char some[4096];
  while (file != nullptr) {
    const size_t count = fread(some, 1, sizeof some, file.get());
    text.append(some, count);
    if (count == sizeof some) continue;
    if (ferror(file.get()) != 0) break;
    return text;
  }
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", path, " can't be read: ", strerror(errno)));
}

}  // namespace nsa::metadata::server
