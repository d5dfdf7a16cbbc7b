#include "server/live_calls.h"

namespace nsa::metadata::server {

void LiveCalls::Place::Begin() {
  live_ = true;
  calls_.live_.fetch_add(1, std::memory_order_relaxed);
}

LiveCalls::Place::~Place() {
  if (live_) calls_.live_.fetch_sub(1, std::memory_order_relaxed);
  int64_t held = calls_.held_.load(std::memory_order_relaxed);
  while (held > 1) {
    if (calls_.held_.compare_exchange_weak(held, held - 1, std::memory_order_acq_rel)) return;
  }
  // `calls_` may be gone once the lock is.
  MutexLock lock(&calls_.mutex_);
  if (calls_.held_.fetch_sub(1, std::memory_order_acq_rel) == 1) calls_.none_.SignalAll();
}

void LiveCalls::AwaitNone() {
  MutexLock lock(&mutex_);
  while (held_.load(std::memory_order_acquire) > 0) none_.Wait(mutex_);
}

}  // namespace nsa::metadata::server
