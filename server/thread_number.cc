#include "server/thread_number.h"

#include <functional>
#include <queue>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/mutex.h"

namespace nsa::metadata::server {
namespace {

class Numbers {
 public:
  size_t Take() {
    MutexLock lock(&mutex_);
    if (free_.empty()) return next_++;
    const size_t number = free_.top();
    free_.pop();
    return number;
  }
  void GiveBack(size_t number) {
    MutexLock lock(&mutex_);
    free_.push(number);
  }

 private:
  Mutex mutex_;
  size_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  std::priority_queue<size_t, std::vector<size_t>, std::greater<>> free_ ABSL_GUARDED_BY(mutex_);
};

// Threads may end after everything else has.
Numbers& TheNumbers() {
  static auto* const numbers = new Numbers;
  return *numbers;
}

struct Held {
  Held() { internal::thread_number = TheNumbers().Take(); }
  ~Held() { TheNumbers().GiveBack(std::exchange(internal::thread_number, internal::kEndingThread)); }
};

}  // namespace

namespace internal {

constinit thread_local size_t thread_number = kNoThreadNumber;

size_t TakeThreadNumber() {
  thread_local const Held held;
  return thread_number;
}

}  // namespace internal

}  // namespace nsa::metadata::server
