// Small answers that leave together. One's way through the kernel's TCP, and the waking of its reader, cost a third of
// what serving it takes.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "server/clock.h"
#include "server/delivered.h"

namespace nsa::metadata::server {

// Of which calls answers are held back.
enum class HeldKinds { kNone, kStreams, kAll };

// The descriptors of TCP connections, as they were when the connections came: gRPC closes them without telling, and
// their numbers become others'. Thread-safe.
class Descriptors {
 public:
  void Set(DeliverySlot slot, int fd) { of_[slot].store(fd, std::memory_order_relaxed); }
  // -1 for none.
  int Of(DeliverySlot slot) const { return slot == kNoSlot ? -1 : of_[slot].load(std::memory_order_relaxed); }

 private:
  std::vector<std::atomic<int>> of_ = [] {
    std::vector<std::atomic<int>> none(kNumDeliverySlots);
    for (auto& fd : none) fd = -1;
    return none;
  }();
};

// The connections on which a thread holds back what is written (TCP_CORK), until it has nothing more to say. What is
// held and forgotten the kernel sends by itself after 200 ms or more; a full segment is not held. A descriptor that is
// another's by now is held as briefly, or not at all. Of one thread, which has no other; holds nothing when it is
// destroyed elsewhere.
class HeldAnswers {
 public:
  // A larger one is worth segments of its own.
  static constexpr size_t kLargest = 16 << 10;
  // No more is to begin while something was held for so long.
  static constexpr std::chrono::microseconds kLongest{500};

  explicit HeldAnswers(const Descriptors& descriptors) : descriptors_(descriptors) {}
  HeldAnswers(const HeldAnswers&) = delete;
  ~HeldAnswers() { Release(); }

  // Holds what is written to the connection of `slot` from here on, whoever writes it.
  void Hold(DeliverySlot slot);
  // Sends what is held, and holds nothing.
  void Release();
  bool empty() const { return held_.empty(); }
  bool old() const { return !held_.empty() && Clock::now() - since_ >= kLongest; }

  // What the calling thread holds back anywhere, sent: for those who know of no queue, before work that was not counted
  // on when it was held.
  static void ReleaseOfThisThread() {
    if (of_this_thread_ != nullptr) of_this_thread_->Release();
  }
  // The same of what is old.
  static void ReleaseOldOfThisThread() {
    if (of_this_thread_ != nullptr && of_this_thread_->old()) of_this_thread_->Release();
  }

 private:
  // Each is looked through when one is held.
  static constexpr size_t kMost = 32;

  // While that holds something.
  inline static thread_local HeldAnswers* of_this_thread_ = nullptr;

  const Descriptors& descriptors_;
  absl::InlinedVector<int, kMost> held_;
  TimePoint since_;  // the first of them
};

}  // namespace nsa::metadata::server
