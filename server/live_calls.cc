#include "server/live_calls.h"

namespace nsa::metadata::server {

void LiveCalls::LetGo() {
  int64_t count = held_.load(std::memory_order_relaxed);
  while (count > 1) {
    if (held_.compare_exchange_weak(count, count - 1, std::memory_order_acq_rel)) return;
  }
  MutexLock lock(&mutex_);
  if (held_.fetch_sub(1, std::memory_order_acq_rel) == 1) none_.SignalAll();
}

void LiveCalls::AwaitNone() {
  MutexLock lock(&mutex_);
  while (held_.load(std::memory_order_acquire) > 0) none_.Wait(mutex_);
}

}  // namespace nsa::metadata::server
