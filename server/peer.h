// The other end of a connection, as gRPC and as the kernel name it.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>

namespace nsa::metadata::server {

// An IPv6 address, or an IPv4 one as IPv6 writes it, ::ffff:0:0/96.
using IpAddress = std::array<uint8_t, 16>;

bool IsIpv4(const IpAddress& address);
// "10.0.0.1" or "::1"; nothing where it is neither.
std::optional<IpAddress> ParseIp(std::string_view text);

// Of a TCP connection.
struct Peer {
  IpAddress address;
  uint16_t port;
};

// As gRPC writes it, "ipv4:127.0.0.1:50051" or "ipv6:%5B::1%5D:50051"; nothing for any other. A scope is left out.
std::optional<Peer> ParsePeer(std::string_view peer);
// Of a connected socket; nothing where it is not TCP.
std::optional<Peer> PeerOf(int fd);

}  // namespace nsa::metadata::server
