// Tags for gRPC's completion queues: what is to happen when an operation is done.
#pragma once

#include "grpcpp/completion_queue.h"

#if defined(__SANITIZE_THREAD__)
#define NSA_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NSA_TSAN 1
#endif
#endif
#ifdef NSA_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace nsa::metadata::server {

class CompletionTag {
 public:
  // Called once per operation, on the queue's thread. `ok` as gRPC gives it.
  virtual void Proceed(bool ok) = 0;

 protected:
  ~CompletionTag() = default;
};

// Calls a member function.
template <typename Owner>
class MemberTag final : public CompletionTag {
 public:
  MemberTag(Owner* owner, void (Owner::*step)(bool)) : owner_(owner), step_(step) {}
  void Proceed(bool ok) override { (owner_->*step_)(ok); }

 private:
  Owner* owner_;
  void (Owner::*step_)(bool);
};

// What is written before an operation is started is seen by the thread that gets its tag. gRPC sees to that, but its
// library is not built for ThreadSanitizer, which is told here.
inline void* Started(CompletionTag* tag) {
#ifdef NSA_TSAN
  __tsan_release(tag);
#endif
  return tag;
}

// Runs the queue until it is shut down and drained.
inline void RunQueue(grpc::CompletionQueue& queue) {
  void* tag = nullptr;
  bool ok = false;
  while (queue.Next(&tag, &ok)) {
#ifdef NSA_TSAN
    __tsan_acquire(tag);
#endif
    static_cast<CompletionTag*>(tag)->Proceed(ok);
  }
}

}  // namespace nsa::metadata::server
