// Which calls gRPC still has to do with.
#pragma once

#include <atomic>
#include <cstdint>

#include "server/mutex.h"

namespace nsa::metadata::server {

// Counts calls from their arrival until gRPC is done with them, and the takers that wait for one: a call that has come
// may still be on its way to its taker. Thread-safe.
class LiveCalls {
 public:
  // A taker waits. It is followed by Begin, or by NoneCame.
  void Await() { held_.fetch_add(1, std::memory_order_relaxed); }
  void NoneCame() { LetGo(); }
  // Its call has arrived.
  void Begin() { live_.fetch_add(1, std::memory_order_relaxed); }
  // The object may be gone when the last one returns.
  void End() {
    live_.fetch_sub(1, std::memory_order_relaxed);
    LetGo();
  }

  int64_t count() const { return live_.load(std::memory_order_relaxed); }
  // Blocks until there is no call and no taker: takers end when the server is shut down.
  void AwaitNone();

 private:
  void LetGo();

  std::atomic<int64_t> live_{0};
  // Takers and calls. Falls to 0 under the mutex only, so that whoever has waited for that finds nobody in here.
  std::atomic<int64_t> held_{0};
  Mutex mutex_;
  CondVar none_;
};

}  // namespace nsa::metadata::server
