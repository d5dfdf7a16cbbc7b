// Tags for gRPC's completion queues: what is to happen when an operation is done.
#pragma once

#include "grpcpp/completion_queue.h"
#include "server/tsan.h"

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

// `tag` as an operation's: what is written before the operation is started is seen by the thread that gets the tag.
inline void* Started(CompletionTag* tag) {
  GivenToGrpc(tag);
  return tag;
}

// What a queue has given back.
inline void Proceed(void* tag, bool ok) {
  TakenFromGrpc(tag);
  static_cast<CompletionTag*>(tag)->Proceed(ok);
}

// Runs the queue until it is shut down and drained.
inline void RunQueue(grpc::CompletionQueue& queue) {
  void* tag = nullptr;
  bool ok = false;
  while (queue.Next(&tag, &ok)) Proceed(tag, ok);
}

}  // namespace nsa::metadata::server
