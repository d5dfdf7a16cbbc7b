#include "server/certificates.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <ctime>
#include <memory>

#include "absl/strings/str_cat.h"
#include "server/read_file.h"

namespace nsa::metadata::server {
namespace {

constexpr char kCertificateFlag[] = "tls_certificate";
constexpr char kKeyFlag[] = "tls_key";
constexpr char kClientCaFlag[] = "tls_client_ca";

using Bio = std::unique_ptr<BIO, decltype(&BIO_free)>;
using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;
using X509Certificate = std::unique_ptr<X509, decltype(&X509_free)>;

Bio Over(const std::string& pem) { return {BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())), &BIO_free}; }

// In place of OpenSSL's, which asks on the terminal for the passphrase.
int NoPassphrase(char*, int, int, void*) { return 0; }

absl::Status Unfit(const char* flag, const std::string& path, const char* why) {
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", path, " ", why));
}

// The first certificate in `pem`, or nullptr. All have to be readable.
X509Certificate FirstOf(const std::string& pem) {
  const Bio bio = Over(pem);
  X509Certificate first(PEM_read_bio_X509(bio.get(), nullptr, &NoPassphrase, nullptr), &X509_free);
  if (first == nullptr) return first;
  while (const X509Certificate next{PEM_read_bio_X509(bio.get(), nullptr, &NoPassphrase, nullptr), &X509_free}) {
  }
  const bool at_end = ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE;
  ERR_clear_error();
  if (!at_end) first.reset();
  return first;
}

// `otherwise` where it can't be read.
absl::Time TimeOf(const ASN1_TIME* time, absl::Time otherwise) {
  std::tm utc = {};
  if (ASN1_TIME_to_tm(time, &utc) != 1) return otherwise;
  return absl::FromTM(utc, absl::UTCTimeZone());
}

}  // namespace

absl::StatusOr<Certificates> ReadCertificates(const CertificateFiles& files) {
  Certificates read;
  absl::StatusOr<std::string> certificate = ReadFile(kCertificateFlag, files.certificate);
  if (!certificate.ok()) return certificate.status();
  const X509Certificate own = FirstOf(*certificate);
  if (own == nullptr) return Unfit(kCertificateFlag, files.certificate, "has to hold certificates in PEM form");
  absl::StatusOr<std::string> key = ReadFile(kKeyFlag, files.key);
  if (!key.ok()) return key.status();
  const Key own_key(PEM_read_bio_PrivateKey(Over(*key).get(), nullptr, &NoPassphrase, nullptr), &EVP_PKEY_free);
  if (own_key == nullptr) return Unfit(kKeyFlag, files.key, "has to hold a key in PEM form, without a passphrase");
  if (X509_check_private_key(own.get(), own_key.get()) != 1) {
    return Unfit(kKeyFlag, files.key, absl::StrCat("is not the key of the certificate in ", files.certificate).c_str());
  }
  // What OpenSSL's security level takes for too weak.
  const std::unique_ptr<SSL_CTX, decltype(&SSL_CTX_free)> context(SSL_CTX_new(TLS_server_method()), &SSL_CTX_free);
  if (SSL_CTX_use_certificate(context.get(), own.get()) != 1) {
    const char* const reason = ERR_reason_error_string(ERR_peek_last_error());
    return Unfit(kCertificateFlag, files.certificate,
                 absl::StrCat("can't be used: ", reason == nullptr ? "unknown reason" : reason).c_str());
  }
  read.valid_from = TimeOf(X509_get0_notBefore(own.get()), absl::InfiniteFuture());
  read.expiry = TimeOf(X509_get0_notAfter(own.get()), absl::InfinitePast());
  read.certificate = *std::move(certificate);
  read.key = *std::move(key);
  if (files.client_ca.empty()) return read;
  absl::StatusOr<std::string> client_ca = ReadFile(kClientCaFlag, files.client_ca);
  if (!client_ca.ok()) return client_ca.status();
  if (FirstOf(*client_ca) == nullptr) {
    return Unfit(kClientCaFlag, files.client_ca, "has to hold certificates in PEM form");
  }
  read.client_ca = *std::move(client_ca);
  return read;
}

}  // namespace nsa::metadata::server
