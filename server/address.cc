#include "server/address.h"

#include <arpa/inet.h>
#include <sys/un.h>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace nsa::metadata::server {
namespace {

constexpr size_t kMaxPath = sizeof(sockaddr_un::sun_path) - 1;

absl::Status Bad(const std::string& text, const std::string& why) {
  return absl::InvalidArgumentError(
      absl::StrCat("'", text, "' is no address (", why, "); expected host:port, [v6]:port or unix:path"));
}

}  // namespace

bool Address::IsLocal() const {
  if (is_unix || host == "localhost") return true;
  in6_addr v6;
  if (inet_pton(AF_INET6, host.c_str(), &v6) == 1) return IN6_IS_ADDR_LOOPBACK(&v6);
  in_addr v4;
  return inet_pton(AF_INET, host.c_str(), &v4) == 1 && (ntohl(v4.s_addr) >> 24) == 127;
}

std::string Address::ToString() const {
  if (is_unix) return absl::StrCat("unix:", host);
  const bool is_v6 = host.find(':') != std::string::npos;
  return is_v6 ? absl::StrCat("[", host, "]:", port) : absl::StrCat(host, ":", port);
}

absl::StatusOr<Address> ParseAddress(const std::string& text) {
  Address address;
  if (absl::StartsWith(text, "unix:")) {
    address.is_unix = true;
    address.host = text.substr(5);
    if (address.host.empty()) return Bad(text, "the path is empty");
    if (address.host.size() > kMaxPath) return Bad(text, absl::StrCat("the path is over ", kMaxPath, " bytes"));
    return address;
  }
  const size_t colon = text.rfind(':');
  if (colon == std::string::npos) return Bad(text, "the port is missing");
  address.host = text.substr(0, colon);
  const bool bracketed = address.host.size() > 2 && address.host.front() == '[' && address.host.back() == ']';
  if (bracketed) address.host = address.host.substr(1, address.host.size() - 2);
  if (address.host.empty()) return Bad(text, "the host is empty");
  if (!bracketed && address.host.find(':') != std::string::npos) return Bad(text, "an IPv6 host needs brackets");
  uint32_t port = 0;
  if (!absl::SimpleAtoi(text.substr(colon + 1), &port) || port > 65'535)
    return Bad(text, "the port is no number up to 65535");
  address.port = static_cast<uint16_t>(port);
  return address;
}

}  // namespace nsa::metadata::server
