#include "server/live_calls.h"

namespace nsa::metadata::server {

void LiveCalls::Begin() {
  MutexLock lock(&mutex_);
  ++count_;
}

void LiveCalls::End() {
  MutexLock lock(&mutex_);
  if (--count_ == 0) none_.SignalAll();
}

int64_t LiveCalls::count() const {
  MutexLock lock(&mutex_);
  return count_;
}

void LiveCalls::AwaitNone() {
  MutexLock lock(&mutex_);
  while (count_ > 0) none_.Wait(mutex_);
}

}  // namespace nsa::metadata::server
