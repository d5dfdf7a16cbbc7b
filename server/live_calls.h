// Which calls gRPC still has to do with.
#pragma once

#include <atomic>
#include <cstdint>

#include "server/mutex.h"

namespace nsa::metadata::server {

// Counts calls from their arrival until gRPC is done with them. Thread-safe.
class LiveCalls {
 public:
  void Begin() { count_.fetch_add(1, std::memory_order_relaxed); }
  // The object may be gone when the last one returns.
  void End();
  int64_t count() const { return count_.load(std::memory_order_relaxed); }
  // Blocks until there is none.
  void AwaitNone();

 private:
  // Falls to 0 under the mutex only, so that whoever has waited for that finds nobody in here.
  std::atomic<int64_t> count_{0};
  Mutex mutex_;
  CondVar none_;
};

}  // namespace nsa::metadata::server
