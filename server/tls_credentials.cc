#include "server/tls_credentials.h"

#include <grpc/grpc.h>

#include <utility>

namespace nsa::metadata::server {

TlsCredentials::TlsCredentials(Certificates certificates)
    : certificates_(std::move(certificates)),
      credentials_(grpc_ssl_server_credentials_create_with_options(
          grpc_ssl_server_credentials_create_options_using_config_fetcher(
              certificates_.client_ca.empty() ? GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE
                                              : GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY,
              &TlsCredentials::Fetch, this))) {}

TlsCredentials::~TlsCredentials() { grpc_server_credentials_release(credentials_); }

void TlsCredentials::Set(Certificates certificates) {
  MutexLock lock(&mutex_);
  certificates_ = std::move(certificates);
  fetched_ = false;
}

int TlsCredentials::AddPortToServer(const std::string& address, grpc_server* server) {
  return grpc_server_add_http2_port(server, address.c_str(), credentials_);
}

grpc_ssl_certificate_config_reload_status TlsCredentials::Fetch(void* self,
                                                                grpc_ssl_server_certificate_config** config) {
  return static_cast<TlsCredentials*>(self)->Fetch(config);
}

grpc_ssl_certificate_config_reload_status TlsCredentials::Fetch(grpc_ssl_server_certificate_config** config) {
  MutexLock lock(&mutex_);
  if (fetched_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
  const grpc_ssl_pem_key_cert_pair pair = {.private_key = certificates_.key.c_str(),
                                           .cert_chain = certificates_.certificate.c_str()};
  // Without roots gRPC looks for the system's, though nobody is asked for a certificate.
  const std::string& roots = certificates_.client_ca.empty() ? certificates_.certificate : certificates_.client_ca;
  *config = grpc_ssl_server_certificate_config_create(roots.c_str(), &pair, 1);
  fetched_ = true;
  return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
}

}  // namespace nsa::metadata::server
