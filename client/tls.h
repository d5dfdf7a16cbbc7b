// Credentials of connections by TLS.
#pragma once

#include <grpcpp/security/credentials.h>

#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace nsa::metadata::client {

// Paths of PEM files, read once.
struct TlsFiles {
  // The roots of the server's certificate; empty: the system's.
  std::string ca = {};
  // The caller's own certificate and those that lead to its root, and its key, for servers that ask for them; both or
  // neither.
  std::string certificate = {};
  std::string key = {};
};

// For ClientOptions.credentials. INVALID_ARGUMENT names the file that can't be read or holds none of what it should.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsCredentials(const TlsFiles& files);

}  // namespace nsa::metadata::client
