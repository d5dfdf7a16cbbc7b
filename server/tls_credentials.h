// TLS for connections, with certificates that may be replaced while it serves.
#pragma once

#include <grpc/grpc_security.h>

#include <memory>
#include <string>

#include "absl/base/thread_annotations.h"
#include "grpcpp/security/server_credentials.h"
#include "server/certificates.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

// gRPC 1.51.1's own FileWatcherCertificateProvider fails all handshakes on a pair that does not match, and aborts on an
// empty file. These ask for the certificates at each handshake. TLS 1.2 or newer, gRPC's least. For one server, whose
// connections all come from one acceptor; outlives it.
class TlsCredentials final : public grpc::ServerCredentials {
 public:
  // Callers are asked for certificates if these have a client_ca; that stays as it is.
  explicit TlsCredentials(Certificates certificates);
  ~TlsCredentials() override;

  // Handshakes from here on use `certificates`. Any thread.
  void Set(Certificates certificates) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  void SetAuthMetadataProcessor(const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}
  int AddPortToServer(const std::string& address, grpc_server* server) override;

  static grpc_ssl_certificate_config_reload_status Fetch(void* self, grpc_ssl_server_certificate_config** config);
  grpc_ssl_certificate_config_reload_status Fetch(grpc_ssl_server_certificate_config** config)
      ABSL_LOCKS_EXCLUDED(mutex_);

  Mutex mutex_;
  Certificates certificates_ ABSL_GUARDED_BY(mutex_);
  // Whether gRPC has them.
  bool fetched_ ABSL_GUARDED_BY(mutex_) = false;
  grpc_server_credentials* const credentials_;
};

}  // namespace nsa::metadata::server
