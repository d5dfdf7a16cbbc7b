#include "server/callers.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace nsa::metadata::server {
namespace {

constexpr size_t kBytes = sizeof(in6_addr);
constexpr int kBits = 8 * kBytes;
constexpr size_t kNetworkBytes = 8;  // of an IPv6 address, what tells networks apart
constexpr std::string_view kMapped("\0\0\0\0\0\0\0\0\0\0\xff\xff", 12);

// An address's 16 bytes, IPv4 as IPv6 writes it; empty when `text` is none.
std::string Bytes(std::string_view text) {
  char copy[INET6_ADDRSTRLEN] = {};
  if (text.size() >= sizeof copy) return "";
  text.copy(copy, text.size());
  char bytes[kBytes];
  if (inet_pton(AF_INET6, copy, bytes) == 1) return std::string(bytes, kBytes);
  if (inet_pton(AF_INET, copy, bytes) == 1) return std::string(kMapped).append(bytes, sizeof(in_addr));
  return "";
}

bool IsIpv4(std::string_view address) { return address.substr(0, kMapped.size()) == kMapped; }

// The address of a TCP peer, "ipv4:127.0.0.1:50051" or "ipv6:%5B::1%5D:50051"; empty for any other.
std::string PeerAddress(std::string_view peer) {
  constexpr std::string_view kIpv4 = "ipv4:";
  constexpr std::string_view kIpv6 = "ipv6:%5B";
  const std::string_view host = peer.substr(0, peer.rfind(':'));
  if (peer.starts_with(kIpv4)) return Bytes(host.substr(std::min(kIpv4.size(), host.size())));
  if (!peer.starts_with(kIpv6)) return "";
  // Up to the bracket's end, or to the scope before it.
  const std::string_view address = peer.substr(kIpv6.size());
  return Bytes(address.substr(0, address.find('%')));
}

Account Hash(std::string_view name) {
  const size_t hash = absl::Hash<std::string_view>()(name);
  return static_cast<Account>(1 + hash % (kNumAccounts - 1));  // not kNoAccount
}

}  // namespace

absl::StatusOr<AddressBlock> AddressBlock::Parse(const std::string& text) {
  const size_t slash = text.find('/');
  AddressBlock block;
  block.address_ = Bytes(text.substr(0, slash));
  if (block.address_.empty()) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' must be an IP address, or one and /bits"));
  }
  block.bits_ = kBits;
  if (slash == std::string::npos) return block;
  const int before = text.find(':') == std::string::npos ? 8 * static_cast<int>(kMapped.size()) : 0;
  int bits = 0;
  if (!absl::SimpleAtoi(text.substr(slash + 1), &bits) || bits < 0 || before + bits > kBits) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' must have 0 to ", kBits - before, " bits"));
  }
  block.bits_ = before + bits;
  return block;
}

bool AddressBlock::Contains(std::string_view address) const {
  const size_t whole = static_cast<size_t>(bits_) / 8;
  if (address.size() != kBytes || address.substr(0, whole) != std::string_view(address_).substr(0, whole)) return false;
  const int rest = bits_ % 8;
  if (rest == 0) return true;
  const auto differing = static_cast<uint8_t>(address[whole] ^ address_[whole]);
  return differing >> (8 - rest) == 0;
}

Callers::Callers(const std::vector<std::string>& trusted_proxies, std::string caller_metadata)
    : caller_metadata_(std::move(caller_metadata)) {
  for (const std::string& text : trusted_proxies) {
    if (absl::StatusOr<AddressBlock> block = AddressBlock::Parse(text); block.ok()) trusted_proxies_.push_back(*block);
  }
}

Account Callers::AccountOf(const grpc::ServerContextBase& call) const {
  std::optional<std::string_view> named;
  if (!caller_metadata_.empty()) {
    // A second one would be the caller's own.
    const auto [entry, end] = call.client_metadata().equal_range(caller_metadata_);
    if (std::distance(entry, end) == 1) named = {entry->second.data(), entry->second.size()};
  }
  return AccountOf(call.peer(), named);
}

Account Callers::AccountOf(std::string_view peer, std::optional<std::string_view> named) const {
  const std::string address = PeerAddress(peer);
  if (address.empty()) return Hash("unix");
  const auto has_it = [&](const AddressBlock& block) { return block.Contains(address); };
  if (named && std::any_of(trusted_proxies_.begin(), trusted_proxies_.end(), has_it)) return Hash(*named);
  return Hash(IsIpv4(address) ? address : address.substr(0, kNetworkBytes));
}

}  // namespace nsa::metadata::server
