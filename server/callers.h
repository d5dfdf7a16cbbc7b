// Who a caller is, for what is limited by caller.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "grpcpp/server_context.h"
#include "server/account.h"
#include "server/delivered.h"
#include "server/options.h"
#include "server/peer.h"

namespace nsa::metadata::server {

// A block of addresses, "10.0.0.0/8", "::1/128" or a single address.
class AddressBlock {
 public:
  // INVALID_ARGUMENT saying what is wrong with `text`.
  static absl::StatusOr<AddressBlock> Parse(const std::string& text);
  bool Contains(const IpAddress& address) const;

 private:
  IpAddress address_ = {};
  int bits_ = 0;
};

// Of a call.
struct Caller {
  Account account = kNoAccount;
  // Of the connection it came over; kNoSlot for all that is not TCP.
  DeliverySlot slot = kNoSlot;
};

// A caller is the first name in its certificate, or, without one, a remote IP address; of IPv6 the first 64 bits, which
// one host has for itself. Callers behind a trusted proxy are what it says in the metadata of their calls. Thread-safe.
class Callers {
 public:
  // Of the valid `options`, trusted_proxies and caller_metadata, which is the key that proxies name their callers in,
  // in place of what these may have said there themselves; and whether callers have certificates.
  explicit Callers(const Options& options);

  // All that is not TCP has one account: gRPC doesn't tell a Unix socket's connections apart.
  Caller CallerOf(grpc::ServerContext& call) const;
  // Who that is, for people: the name that counts, and the address it came from; 200 bytes at most.
  std::string NameOf(const grpc::ServerContextBase& call) const;
  // The account of one at `peer`, as gRPC writes it, whose call's metadata have `named` under the key, and whose
  // certificate names `certified`, or nothing.
  Account AccountOf(std::string_view peer, std::optional<std::string_view> named,
                    std::optional<std::string_view> certified = std::nullopt) const {
    return AccountOf(ParsePeer(peer), named, certified);
  }

 private:
  Account AccountOf(const std::optional<Peer>& peer, std::optional<std::string_view> named,
                    std::optional<std::string_view> certified) const;
  bool IsTrustedProxy(const std::optional<Peer>& peer) const;
  // What the call's metadata have under the key, and the first name in its certificate.
  std::optional<std::string_view> Named(const grpc::ServerContextBase& call) const;
  std::optional<std::string_view> Certified(const grpc::ServerContextBase& call) const;

  std::vector<AddressBlock> trusted_proxies_;
  const std::string caller_metadata_;
  const bool have_certificates_;
};

}  // namespace nsa::metadata::server
