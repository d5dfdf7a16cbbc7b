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
  // What a taker holds, from waiting for a call until gRPC is done with it: its first member, which goes last.
  class Place {
   public:
    explicit Place(LiveCalls& calls) : calls_(calls) { calls_.held_.fetch_add(1, std::memory_order_relaxed); }
    ~Place();
    Place(const Place&) = delete;
    Place& operator=(const Place&) = delete;
    // The call has arrived.
    void Begin();

   private:
    LiveCalls& calls_;
    bool live_ = false;
  };

  int64_t count() const { return live_.load(std::memory_order_relaxed); }
  // Blocks until there is no call and no taker: takers end when the server is shut down.
  void AwaitNone();

 private:
  std::atomic<int64_t> live_{0};
  // Takers and calls. Falls to 0 under the mutex only, so that whoever has waited for that finds nobody in here.
  std::atomic<int64_t> held_{0};
  Mutex mutex_;
  CondVar none_;
};

}  // namespace nsa::metadata::server
