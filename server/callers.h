// Who a caller is, for what is limited by caller.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "grpcpp/server_context.h"
#include "server/account.h"

namespace nsa::metadata::server {

// A block of addresses, "10.0.0.0/8", "::1/128" or a single address. IPv4 as IPv6 writes it, ::ffff:0:0/96.
class AddressBlock {
 public:
  // INVALID_ARGUMENT saying what is wrong with `text`.
  static absl::StatusOr<AddressBlock> Parse(const std::string& text);
  // `address` is an IPv6 address's 16 bytes.
  bool Contains(std::string_view address) const;

 private:
  std::string address_;  // 16 bytes
  int bits_ = 0;
};

// A caller is a remote IP address; of IPv6 the first 64 bits, which one host has for itself. Callers behind a trusted
// proxy are what it says in the metadata of their calls. Thread-safe.
class Callers {
 public:
  // `trusted_proxies` are address blocks. `caller_metadata` is the key that proxies name their callers in, in place of
  // what these may have said there themselves; empty: none.
  Callers(const std::vector<std::string>& trusted_proxies, std::string caller_metadata);

  // The account of a call's caller. All that is not TCP has one: gRPC doesn't tell a Unix socket's connections apart.
  Account AccountOf(const grpc::ServerContextBase& call) const;
  // The same of a peer, as gRPC writes it, whose call's metadata have `named` under the key, or nothing.
  Account AccountOf(std::string_view peer, std::optional<std::string_view> named) const;

 private:
  std::vector<AddressBlock> trusted_proxies_;
  const std::string caller_metadata_;
};

}  // namespace nsa::metadata::server
