#include "server/trust.h"

#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "server/certificates.h"
#include "server/read_file.h"
#include "spdlog/spdlog.h"

namespace nsa::metadata::server {

std::vector<std::string_view> CallerNames(const grpc::ServerContextBase& call) {
  std::vector<std::string_view> names;
  for (const grpc::string_ref& name : call.auth_context()->GetPeerIdentity()) {
    names.emplace_back(name.data(), name.size());
  }
  return names;
}

absl::StatusOr<std::unique_ptr<Trust>> Trust::Create(const TrustOptions& options, Metrics& metrics) {
  std::unique_ptr<Trust> trust(new Trust(options, metrics));
  const auto watch = [&trust, period = absl::ToChronoNanoseconds(options.reload_period)](std::vector<std::string> paths,
                                                                                         Reloaded what) {
    trust->watchers_.push_back(std::make_unique<FileWatcher>(
        std::move(paths), period, [self = trust.get(), what] { return self->Reload(what); }));
  };
  // Watched from before they are read: what is replaced meanwhile is another at the first look.
  trust->credentials_ = grpc::InsecureServerCredentials();
  if (const CertificateFiles& files = options.tls; !files.certificate.empty()) {
    std::vector<std::string> paths = {files.certificate, files.key};
    if (!files.client_ca.empty()) paths.push_back(files.client_ca);
    absl::StatusOr<Certificates> certificates = server::ReadCertificates(files);
    if (!certificates.ok()) return certificates.status();
    trust->tls_ = std::make_shared<TlsCredentials>(*certificates);
    trust->credentials_ = trust->tls_;
    watch(std::move(paths), Reloaded::kCertificates);
    if (absl::Status status = trust->ReadCertificates(); !status.ok()) return status;
  }
  if (!options.authorization_policy.empty()) {
    watch({options.authorization_policy}, Reloaded::kPolicy);
    if (absl::Status status = trust->ReadPolicy(); !status.ok()) return status;
  }
  return trust;
}

std::optional<Refusal> Trust::Check(const grpc::ServerContextBase& call, Method method) const {
  if (options_.authorization_policy.empty()) return std::nullopt;
  std::shared_ptr<const Policy> policy;
  {
    MutexLock lock(&mutex_);
    policy = policy_;
  }
  const std::vector<std::string_view> names = CallerNames(call);
  if (policy->Allows(MethodName(method), names)) return std::nullopt;
  // A caller chooses neither their number nor their bytes, but its authority may.
  constexpr size_t kMostBytes = 200;
  const std::string name(names.empty() ? "a caller without a certificate" : names.front().substr(0, kMostBytes));
  return NotAllowed(absl::StrCat("the authorization policy does not allow ", absl::CEscape(name), " to call ",
                                 std::string(MethodName(method))));
}

std::optional<absl::Time> Trust::certificate_expiry() const {
  MutexLock lock(&mutex_);
  return certificate_expiry_;
}

absl::Status Trust::CheckTime(const Certificates& certificates, absl::Time now) const {
  const std::string flag = absl::StrCat("--tls_certificate=", options_.tls.certificate);
  if (certificates.expiry <= now) return absl::FailedPreconditionError(absl::StrCat(flag, " has expired"));
  if (certificates.valid_from <= now) return absl::OkStatus();
  const std::string from = absl::FormatTime(absl::RFC3339_sec, certificates.valid_from, absl::UTCTimeZone());
  return absl::UnavailableError(absl::StrCat(flag, " is not valid before ", from));
}

absl::Status Trust::ReadCertificates() {
  MutexLock one_at_a_time(&reading_);
  absl::StatusOr<Certificates> certificates = server::ReadCertificates(options_.tls);
  if (!certificates.ok()) return certificates.status();
  const absl::Time expiry = certificates->expiry;
  const absl::Time now = absl::Now();
  if (absl::Status status = CheckTime(*certificates, now); !status.ok()) {
    if (certificate_expiry() > now) return status;
    spdlog::warn("{}", std::string(status.message()));  // no worse than what there is
  }
  tls_->Set(*std::move(certificates));
  MutexLock lock(&mutex_);
  certificate_expiry_ = expiry;
  return absl::OkStatus();
}

absl::Status Trust::ReadPolicy() {
  MutexLock one_at_a_time(&reading_);
  const absl::StatusOr<std::string> json = ReadFile("authorization_policy", options_.authorization_policy);
  if (!json.ok()) return json.status();
  absl::StatusOr<Policy> policy = Policy::Parse(*json);
  if (!policy.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--authorization_policy=", options_.authorization_policy, ": ",
                                                   std::string(policy.status().message())));
  }
  MutexLock lock(&mutex_);
  policy_ = std::make_shared<const Policy>(*std::move(policy));
  return absl::OkStatus();
}

bool Trust::Reload(Reloaded what) {
  const bool certificates = what == Reloaded::kCertificates;
  const absl::Status status = certificates ? ReadCertificates() : ReadPolicy();
  if (certificates) {
    const std::string before = std::exchange(not_yet_, absl::IsUnavailable(status) ? status.ToString() : "");
    if (!not_yet_.empty() && not_yet_ == before) return false;
  }
  metrics_.Reload(what, status.ok());
  if (status.ok()) {
    spdlog::info("{} read again", certificates ? "certificates" : "authorization policy");
  } else {
    spdlog::error("the old {} in use: {}", certificates ? "certificates stay" : "authorization policy stays",
                  std::string(status.message()));
  }
  return !absl::IsUnavailable(status);
}

}  // namespace nsa::metadata::server
