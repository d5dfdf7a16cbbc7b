// Stops what passes a step of the server, until a test lets it go.
#pragma once

#include "server/failpoints.h"
#include "server/mutex.h"

namespace nsa::metadata::testing {

// Stops the first that passes `step`, and nothing after it. Thread-safe.
class Halt final : public server::Failpoints {
 public:
  explicit Halt(server::Step step) : step_(step) {}

  void Reached(server::Step step) override {
    server::MutexLock lock(&mutex_);
    if (step != step_ || halted_) return;
    halted_ = true;
    changed_.SignalAll();
    while (!released_) changed_.Wait(mutex_);
  }

  // Blocks until something has stopped.
  void AwaitHalted() {
    server::MutexLock lock(&mutex_);
    while (!halted_) changed_.Wait(mutex_);
  }
  void Release() {
    server::MutexLock lock(&mutex_);
    released_ = true;
    changed_.SignalAll();
  }

 private:
  const server::Step step_;
  server::Mutex mutex_;
  server::CondVar changed_;
  bool halted_ ABSL_GUARDED_BY(mutex_) = false;
  bool released_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nsa::metadata::testing
