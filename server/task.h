// One admitted request on its way through the server.
#pragma once

#include <memory>
#include <utility>

#include "google/protobuf/arena.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/clock.h"
#include "server/codec.h"
#include "server/output_pool.h"
#include "server/recycled.h"
#include "server/refusal.h"

namespace nsa::metadata::server {

// The call or stream item behind a task. Exactly one of Reply and Refuse is called, once, from any thread; the
// responder may be gone when it returns.
class Responder {
 public:
  // Whether the caller is known to have given up. Any thread.
  virtual bool cancelled() const = 0;
  virtual void Reply(const Messages& reply) = 0;
  virtual void Refuse(const Refusal& refusal) = 0;

 protected:
  ~Responder() = default;
};

// When a task passed each step.
struct StageTimes {
  TimePoint arrived;
  TimePoint parsed;
  TimePoint admitted;
  TimePoint launched;  // its batch was closed
};

// Answers exactly once: with Reply, with Refuse, or, when neither was called, INTERNAL from the destructor. Not
// thread-safe.
class Task : public Recycled<Task> {
 public:
  Task() : arena_(ArenaOn(first_bytes_)) {}
  ~Task() {
    if (responder_ != nullptr) Refuse(InternalFault("the request was dropped"));
  }
  Task(const Task&) = delete;
  Task& operator=(const Task&) = delete;

  // Who is to be answered; outlives the answer's beginning. A task without one is nobody's and needs none.
  void AnswerTo(Responder& responder) { responder_ = &responder; }
  bool has_responder() const { return responder_ != nullptr; }

  // Memory for the request's message.
  google::protobuf::Arena& arena() { return arena_; }
  bool cancelled() const { return responder_->cancelled(); }
  void Reply(const Messages& reply) { std::exchange(responder_, nullptr)->Reply(reply); }
  void Refuse(const Refusal& refusal) { std::exchange(responder_, nullptr)->Refuse(refusal); }

  Expansion expansion;
  OutputPermit permit;
  TimePoint deadline = TimePoint::max();
  StageTimes times;

 private:
  // Enough for the lengths of some hundred sequences without an allocation.
  static constexpr size_t kFirstBytes = 2048;
  static google::protobuf::ArenaOptions ArenaOn(char* first_bytes) {
    google::protobuf::ArenaOptions options;
    options.initial_block = first_bytes;
    options.initial_block_size = kFirstBytes;
    return options;
  }

  Responder* responder_ = nullptr;
  alignas(8) char first_bytes_[kFirstBytes];
  google::protobuf::Arena arena_;
};

}  // namespace nsa::metadata::server
