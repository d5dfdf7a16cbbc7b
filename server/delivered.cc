#include "server/delivered.h"

#include "absl/hash/hash.h"

namespace nsa::metadata::server {

DeliverySlot SlotOf(const std::optional<Peer>& peer) {
  if (!peer) return kNoSlot;
  return static_cast<DeliverySlot>(1 + absl::HashOf(peer->address, peer->port) % (kNumDeliverySlots - 1));
}

}  // namespace nsa::metadata::server
