#include "client/tls.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"

namespace nsa::metadata::client {
namespace {

// The file's contents, which have to have `what` in PEM form.
absl::StatusOr<std::string> ReadPem(const char* name, const std::string& path, const std::string& what) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream contents;
  contents << file.rdbuf();  // a folder, which opens, has none
  if (!file.is_open()) {
    return absl::InvalidArgumentError(absl::StrCat(name, " ", path, " can't be read: ", strerror(errno)));
  }
  std::string text = contents.str();
  if (text.find("-----BEGIN ") == std::string::npos || text.find(what + "-----") == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat(name, " ", path, " has to hold a ", what, " in PEM form"));
  }
  return text;
}

constexpr char kCertificate[] = "CERTIFICATE";

}  // namespace

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> TlsCredentials(const TlsFiles& files) {
  if (files.certificate.empty() != files.key.empty()) {
    return absl::InvalidArgumentError("a certificate and its key need each other");
  }
  grpc::SslCredentialsOptions options;
  if (!files.ca.empty()) {
    absl::StatusOr<std::string> ca = ReadPem("the roots", files.ca, kCertificate);
    if (!ca.ok()) return ca.status();
    options.pem_root_certs = *std::move(ca);
  }
  if (!files.certificate.empty()) {
    absl::StatusOr<std::string> certificate = ReadPem("the certificate", files.certificate, kCertificate);
    if (!certificate.ok()) return certificate.status();
    absl::StatusOr<std::string> key = ReadPem("the key", files.key, "PRIVATE KEY");
    if (!key.ok()) return key.status();
    options.pem_cert_chain = *std::move(certificate);
    options.pem_private_key = *std::move(key);
  }
  return grpc::SslCredentials(options);
}

}  // namespace nsa::metadata::client
