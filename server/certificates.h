// What a server shows callers of itself, and what it knows them by.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace nsa::metadata::server {

// Paths of PEM files; each is named in errors by its flag.
struct CertificateFiles {
  // The server's certificate, then those that lead from it to the callers' root.
  std::string certificate;
  std::string key;
  // The roots of callers' certificates, which each then has to have; empty: callers need none.
  std::string client_ca;
};

// The files' contents, checked.
struct Certificates {
  std::string certificate;
  std::string key;
  std::string client_ca;
  // From when to when the server's certificate is valid.
  absl::Time valid_from;
  absl::Time expiry;
};

// INVALID_ARGUMENT naming the flag and the file that can't be read, or is not what it should be: certificates, a key,
// the certificate's own key.
absl::StatusOr<Certificates> ReadCertificates(const CertificateFiles& files);

}  // namespace nsa::metadata::server
