#include "server/callers.h"

#include <grpc/grpc.h>
#include <grpc/support/alloc.h>

#include <algorithm>
#include <array>
#include <iterator>
#include <memory>

#include "absl/hash/hash.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "server/trust.h"

namespace nsa::metadata::server {
namespace {

constexpr int kBits = 8 * static_cast<int>(sizeof(IpAddress));
constexpr int kBitsBeforeIpv4 = 96;
constexpr size_t kNetworkBytes = 8;  // of an IPv6 address, what tells networks apart

Account Hash(std::string_view name) {
  const size_t hash = absl::Hash<std::string_view>()(name);
  return static_cast<Account>(1 + hash % (kNumAccounts - 1));  // not kNoAccount
}

// Who calls from a peer follows from how gRPC writes it, and most calls come from those that have called before: a
// thread's last ones, each where its hash says.
class KnownPeers {
 public:
  // Nothing for one that isn't known.
  const Caller* Find(std::string_view peer) const {
    const Known& known = known_[Index(peer)];
    return known.size > 0 && std::string_view(known.peer, known.size) == peer ? &known.caller : nullptr;
  }
  void Keep(std::string_view peer, const Caller& caller) {
    Known& known = known_[Index(peer)];
    if (peer.size() > sizeof known.peer) return;
    known.size = static_cast<uint8_t>(peer.copy(known.peer, sizeof known.peer));
    known.caller = caller;
  }

 private:
  struct Known {
    Caller caller;
    uint8_t size = 0;
    char peer[59];  // more than "ipv6:%5B", an address and a port
  };
  static constexpr size_t kKnown = 256;
  static size_t Index(std::string_view peer) { return absl::Hash<std::string_view>()(peer) % kKnown; }

  std::array<Known, kKnown> known_ = {};
};

}  // namespace

absl::StatusOr<AddressBlock> AddressBlock::Parse(const std::string& text) {
  const size_t slash = text.find('/');
  const std::optional<IpAddress> address = ParseIp(std::string_view(text).substr(0, slash));
  if (!address) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' must be an IP address, or one and /bits"));
  }
  AddressBlock block;
  block.address_ = *address;
  block.bits_ = kBits;
  if (slash == std::string::npos) return block;
  const int before = text.find(':') == std::string::npos ? kBitsBeforeIpv4 : 0;
  int bits = 0;
  if (!absl::SimpleAtoi(text.substr(slash + 1), &bits) || bits < 0 || before + bits > kBits) {
    return absl::InvalidArgumentError(absl::StrCat("'", text, "' must have 0 to ", kBits - before, " bits"));
  }
  block.bits_ = before + bits;
  return block;
}

bool AddressBlock::Contains(const IpAddress& address) const {
  const int whole = bits_ / 8;
  if (!std::equal(address_.begin(), address_.begin() + whole, address.begin())) return false;
  const int rest = bits_ % 8;
  return rest == 0 || (address[whole] ^ address_[whole]) >> (8 - rest) == 0;
}

Callers::Callers(const Options& options)
    : caller_metadata_(options.caller_metadata), have_certificates_(!options.trust.tls.client_ca.empty()) {
  for (const std::string& text : options.trusted_proxies) {
    if (absl::StatusOr<AddressBlock> block = AddressBlock::Parse(text); block.ok()) trusted_proxies_.push_back(*block);
  }
}

std::optional<std::string_view> Callers::Named(const grpc::ServerContextBase& call) const {
  if (caller_metadata_.empty()) return std::nullopt;
  // A second one would be the caller's own.
  const auto [entry, end] = call.client_metadata().equal_range(caller_metadata_);
  if (std::distance(entry, end) != 1) return std::nullopt;
  return std::string_view(entry->second.data(), entry->second.size());
}

std::optional<std::string_view> Callers::Certified(const grpc::ServerContextBase& call) const {
  if (!have_certificates_) return std::nullopt;
  const std::vector<std::string_view> names = CallerNames(call);
  return names.empty() ? std::nullopt : std::optional(names.front());
}

bool Callers::IsTrustedProxy(const std::optional<Peer>& peer) const {
  return peer && std::ranges::any_of(trusted_proxies_,
                                     [&](const AddressBlock& block) { return block.Contains(peer->address); });
}

Caller Callers::CallerOf(grpc::ServerContext& call) const {
  // As call.peer() does, without a string of its own.
  const std::unique_ptr<char, decltype(&gpr_free)> written(grpc_call_get_peer(call.c_call()), &gpr_free);
  const std::string_view text(written.get());
  const std::optional<std::string_view> named = Named(call);
  const std::optional<std::string_view> certified = Certified(call);
  const bool by_address = !named && !certified;
  thread_local KnownPeers known;
  if (const Caller* found = by_address ? known.Find(text) : nullptr) return *found;
  const std::optional<Peer> peer = ParsePeer(text);
  const Caller caller = {.account = AccountOf(peer, named, certified), .slot = SlotOf(peer)};
  if (by_address) known.Keep(text, caller);
  return caller;
}

std::string Callers::NameOf(const grpc::ServerContextBase& call) const {
  constexpr size_t kMostBytes = 200;
  const std::string peer = call.peer();
  std::optional<std::string_view> name = Named(call);
  if (!name || !IsTrustedProxy(ParsePeer(peer))) name = Certified(call);
  return (name ? absl::StrCat(std::string(*name), " at ", peer) : peer).substr(0, kMostBytes);
}

Account Callers::AccountOf(const std::optional<Peer>& peer, std::optional<std::string_view> named,
                           std::optional<std::string_view> certified) const {
  if (named && IsTrustedProxy(peer)) return Hash(*named);
  if (certified) return Hash(*certified);
  if (!peer) return Hash("unix");
  const IpAddress& address = peer->address;
  return Hash({reinterpret_cast<const char*>(address.data()), IsIpv4(address) ? address.size() : kNetworkBytes});
}

}  // namespace nsa::metadata::server
