// Where a server listens.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"

namespace nsa::metadata::server {

// "127.0.0.1:50051", "[::1]:0", "localhost:80", "unix:/run/nsa.sock".
struct Address {
  bool is_unix = false;
  std::string host;  // or the socket's path
  uint16_t port = 0;

  // Whether only this machine reaches it.
  bool IsLocal() const;
  std::string ToString() const;
};

// INVALID_ARGUMENT naming `text` and what is expected.
absl::StatusOr<Address> ParseAddress(const std::string& text);

}  // namespace nsa::metadata::server
