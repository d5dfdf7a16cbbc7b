#include "server/peer.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>

namespace nsa::metadata::server {
namespace {

constexpr std::array<uint8_t, 12> kMapped = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

IpAddress Mapped(const in_addr& ipv4) {
  IpAddress address = {};
  std::copy(kMapped.begin(), kMapped.end(), address.begin());
  const auto* bytes = reinterpret_cast<const uint8_t*>(&ipv4);
  std::copy(bytes, bytes + sizeof ipv4, address.begin() + kMapped.size());
  return address;
}

}  // namespace

bool IsIpv4(const IpAddress& address) { return std::equal(kMapped.begin(), kMapped.end(), address.begin()); }

std::optional<IpAddress> ParseIp(std::string_view text) {
  char copy[INET6_ADDRSTRLEN] = {};
  if (text.size() >= sizeof copy) return std::nullopt;
  text.copy(copy, text.size());
  if (text.find(':') == std::string_view::npos) {
    in_addr ipv4 = {};
    return inet_pton(AF_INET, copy, &ipv4) == 1 ? std::optional(Mapped(ipv4)) : std::nullopt;
  }
  IpAddress address = {};
  return inet_pton(AF_INET6, copy, address.data()) == 1 ? std::optional(address) : std::nullopt;
}

std::optional<Peer> ParsePeer(std::string_view peer) {
  constexpr std::string_view kIpv4 = "ipv4:";
  constexpr std::string_view kIpv6 = "ipv6:%5B";
  const bool is_ipv6 = peer.starts_with(kIpv6);
  if (!is_ipv6 && !peer.starts_with(kIpv4)) return std::nullopt;
  peer.remove_prefix(is_ipv6 ? kIpv6.size() : kIpv4.size());
  const size_t colon = peer.rfind(':');
  if (colon == std::string_view::npos) return std::nullopt;
  // Up to the bracket's end, or to the scope before it.
  const std::string_view host = peer.substr(0, colon);
  const std::optional<IpAddress> address = ParseIp(is_ipv6 ? host.substr(0, host.find('%')) : host);
  uint16_t port = 0;
  if (!address || std::from_chars(peer.data() + colon + 1, peer.data() + peer.size(), port).ec != std::errc()) {
    return std::nullopt;
  }
  return Peer{.address = *address, .port = port};
}

std::optional<Peer> PeerOf(int fd) {
  union {
    sockaddr any;
    sockaddr_in ipv4;
    sockaddr_in6 ipv6;
    sockaddr_storage room;
  } name = {};
  socklen_t size = sizeof name;
  if (getpeername(fd, &name.any, &size) != 0) return std::nullopt;
  if (name.any.sa_family == AF_INET)
    return Peer{.address = Mapped(name.ipv4.sin_addr), .port = ntohs(name.ipv4.sin_port)};
  if (name.any.sa_family != AF_INET6) return std::nullopt;
  Peer peer = {.address = {}, .port = ntohs(name.ipv6.sin6_port)};
  std::copy(std::begin(name.ipv6.sin6_addr.s6_addr), std::end(name.ipv6.sin6_addr.s6_addr), peer.address.begin());
  return peer;
}

}  // namespace nsa::metadata::server
