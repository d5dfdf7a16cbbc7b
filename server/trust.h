// Who may call: the server's and the callers' certificates, and the policy that says what a caller may do.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_context.h"
#include "server/file_watcher.h"
#include "server/metrics.h"
#include "server/mutex.h"
#include "server/options.h"
#include "server/policy.h"
#include "server/refusal.h"
#include "server/tls_credentials.h"

namespace nsa::metadata::server {

// The names in a caller's certificate, which last as long as the call: the subject alternative names, or, of a
// certificate that has none, the subject's common name. Empty without a certificate.
std::vector<std::string_view> CallerNames(const grpc::ServerContextBase& call);

// Looks for other contents of its files every reload_period, and takes them if they are sound; if not, what it has
// stays in use. Either is counted. Thread-safe.
class Trust {
 public:
  // `options` are valid; `metrics` outlives it. INVALID_ARGUMENT naming the flag, the file, and what is wrong with it.
  static absl::StatusOr<std::unique_ptr<Trust>> Create(const TrustOptions& options, Metrics& metrics);
  Trust(const Trust&) = delete;

  // For the server that it is of, which it outlives.
  const std::shared_ptr<grpc::ServerCredentials>& credentials() const { return credentials_; }
  // Refuses what the policy, if there is one, does not allow.
  std::optional<Refusal> Check(const grpc::ServerContextBase& call, Method method) const;
  // When the certificate in use expires; nothing without TLS.
  std::optional<absl::Time> certificate_expiry() const;

 private:
  Trust(const TrustOptions& options, Metrics& metrics) : options_(options), metrics_(metrics) {}
  // UNAVAILABLE for one that is not valid yet: it will be.
  absl::Status CheckTime(const Certificates& certificates, absl::Time now) const;
  absl::Status ReadCertificates() ABSL_LOCKS_EXCLUDED(reading_);
  absl::Status ReadPolicy() ABSL_LOCKS_EXCLUDED(reading_);
  // False when the same files may be taken later. Called by the watcher of `what` only.
  bool Reload(Reloaded what);

  const TrustOptions options_;
  Metrics& metrics_;
  // So that what was read last is what is used.
  Mutex reading_;
  std::shared_ptr<TlsCredentials> tls_;  // nullptr: plain text
  std::shared_ptr<grpc::ServerCredentials> credentials_;
  mutable Mutex mutex_;
  std::optional<absl::Time> certificate_expiry_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const Policy> policy_ ABSL_GUARDED_BY(mutex_);  // nullptr: all is allowed
  // What the last try said, of certificates that are not valid yet: it is said once.
  std::string not_yet_;
  std::vector<std::unique_ptr<FileWatcher>> watchers_;
};

}  // namespace nsa::metadata::server
