// How much of what came over a connection was requests.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "server/peer.h"

namespace nsa::metadata::server {

// Where a connection's requests are counted: calls know their peers only, and connections only their descriptors.
// Connections share one when their peers' hashes meet, and nobody from outside can choose that.
using DeliverySlot = uint16_t;
inline constexpr size_t kNumDeliverySlots = size_t{1} << 16;
// Of what has no address of its own.
inline constexpr DeliverySlot kNoSlot = 0;

// kNoSlot for none.
DeliverySlot SlotOf(const std::optional<Peer>& peer);

// Counts what reached the service. Thread-safe.
class Delivered {
 public:
  // What a request may have cost on the wire beside its metadata and its message: frames and TLS records, for each so
  // many bytes one more.
  static constexpr uint64_t kOverhead = 512;
  static constexpr uint64_t kFramed = 64;

  // A request came, of so many bytes of metadata and message.
  void Add(DeliverySlot slot, size_t bytes) {
    if (slot == kNoSlot) return;
    bytes_[slot].fetch_add(bytes + bytes / kFramed + kOverhead, std::memory_order_relaxed);
  }
  // Bytes that the requests so far account for; wraps around.
  uint64_t At(DeliverySlot slot) const { return bytes_[slot].load(std::memory_order_relaxed); }

  // A stream with all the items in flight or refusals unread that it may have, or for want of room, is read no further,
  // until it is again:
  // what has come on it meanwhile is the service's doing.
  void BeginWait(DeliverySlot slot) {
    waiting_[slot].fetch_add(1, std::memory_order_relaxed);
    waits_[slot].fetch_add(1, std::memory_order_relaxed);
  }
  void EndWait(DeliverySlot slot) { waiting_[slot].fetch_sub(1, std::memory_order_relaxed); }
  // Streams that wait now, and the waits that have begun so far, which wrap around.
  uint32_t Waiting(DeliverySlot slot) const { return waiting_[slot].load(std::memory_order_relaxed); }
  uint32_t Waits(DeliverySlot slot) const { return waits_[slot].load(std::memory_order_relaxed); }

 private:
  std::vector<std::atomic<uint64_t>> bytes_ = std::vector<std::atomic<uint64_t>>(kNumDeliverySlots);
  std::vector<std::atomic<uint32_t>> waiting_ = std::vector<std::atomic<uint32_t>>(kNumDeliverySlots);
  std::vector<std::atomic<uint32_t>> waits_ = std::vector<std::atomic<uint32_t>>(kNumDeliverySlots);
};

}  // namespace nsa::metadata::server
