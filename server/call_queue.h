// A completion queue, its thread, and the calls that came from it.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "grpcpp/alarm.h"
#include "grpcpp/completion_queue.h"
#include "server/clock.h"
#include "server/completion_queue.h"
#include "server/delivered.h"
#include "server/held_answers.h"
#include "server/metrics.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

// Looks at its calls now and then: gRPC ends none of them for taking long.
class CallQueue {
 public:
  // A call, from Watch to its destruction, both on the queue's thread.
  class Call {
   public:
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

   protected:
    Call() = default;
    virtual ~Call() {
      if (at_ == nullptr) return;
      *at_ = next_;
      if (next_ != nullptr) next_->at_ = at_;
    }
    // What is to be done about it at `now`. Must not end in its destruction.
    virtual void Look(TimePoint now) = 0;

   private:
    friend class CallQueue;
    Call* next_ = nullptr;
    Call** at_ = nullptr;  // what points to it
  };

  CallQueue(std::unique_ptr<grpc::ServerCompletionQueue> queue, const Descriptors& descriptors, HeldKinds hold)
      : queue_(std::move(queue)), held_(descriptors), hold_(hold) {}

  // For gRPC's operations.
  grpc::ServerCompletionQueue* get() { return queue_.get(); }

  // Runs the thread. Every `period` it calls Look of its calls, and `also`.
  void Start(Clock::duration period, std::function<void(TimePoint)> also) {
    period_ = period;
    also_ = std::move(also);
    SetAlarm();
    thread_ = std::thread([this] { Run(); });
  }
  // Once no operation is started on the queue any more: ends the thread.
  void Stop() {
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
      alarm_.Cancel();
    }
    queue_->Shutdown();
    thread_.join();
  }

  // Whether a call that has come leaves two takers behind it in place of one. Up to 32 of a method wait, so that a
  // burst finds takers without a turn of the thread each; but gRPC as Debian builds it looks through all that waits at
  // each event, and many methods are never called.
  bool WantsMoreTakers(Method method) {
    constexpr size_t kMostTakers = 32;
    size_t& takers = takers_[static_cast<size_t>(method)];
    if (takers == kMostTakers) return false;
    ++takers;
    return true;
  }

  // What the queue's calls write, and when, its own thread may hold back (see HeldAnswers); others' never. Any thread.

  // An answer to a unary call from `slot` is about to be written. It is held back where the one before went to the same
  // connection and no operation of one is back since: both calls came together, and so may more.
  void AnswersUnary(DeliverySlot slot, size_t bytes) {
    if (hold_ != HeldKinds::kAll || running_ != this) return;
    if (std::exchange(answered_, slot) == slot) Hold(slot, bytes);
  }
  // The operation of a unary answer is back.
  void UnaryAnswered() { answered_ = kNoSlot; }
  // Holds back what is about to be written to the connection of `slot`, if it is small.
  void Hold(DeliverySlot slot, size_t bytes) {
    if (hold_ == HeldKinds::kNone || running_ != this || bytes > HeldAnswers::kLargest) return;
    held_.Hold(slot);
  }
  // A request of so many bytes is about to be read, or computed into an answer of so many: nothing held is to wait for
  // a large one.
  void Begins(size_t bytes) {
    if (running_ == this && bytes > HeldAnswers::kLargest) held_.Release();
  }

  void Watch(Call& call) {
    call.next_ = first_;
    call.at_ = &first_;
    if (first_ != nullptr) first_->at_ = &call.next_;
    first_ = &call;
  }

 private:
  // Until the queue is shut down and drained.
  void Run() {
    running_ = this;
    void* tag = nullptr;
    bool ok = false;
    while (Next(&tag, &ok)) Proceed(tag, ok);
  }
  // The next event. While something is held back there is no waiting for it.
  bool Next(void** tag, bool* ok) {
    if (!held_.empty()) {
      if (!held_.old() &&
          queue_->AsyncNext(tag, ok, gpr_inf_past(GPR_CLOCK_MONOTONIC)) == grpc::CompletionQueue::GOT_EVENT) {
        return true;
      }
      held_.Release();
    }
    return queue_->Next(tag, ok);
  }
  void OnAlarm(bool) {
    const TimePoint now = Clock::now();
    for (Call* call = first_; call != nullptr; call = call->next_) call->Look(now);
    if (also_) also_(now);
    SetAlarm();
  }
  void SetAlarm() ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(&mutex_);
    if (stopping_) return;
    const auto period = std::chrono::duration_cast<std::chrono::system_clock::duration>(period_);
    alarm_.Set(queue_.get(), std::chrono::system_clock::now() + period, Started(&look_tag_));
  }

  inline static thread_local const CallQueue* running_ = nullptr;

  const std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  // Its thread's.
  HeldAnswers held_;
  DeliverySlot answered_ = kNoSlot;  // where the last unary answer went, until one's operation is back
  const HeldKinds hold_;
  Call* first_ = nullptr;
  std::array<size_t, kNumMethods> takers_ = [] {
    std::array<size_t, kNumMethods> one_each;
    one_each.fill(1);
    return one_each;
  }();
  Clock::duration period_{};
  std::function<void(TimePoint)> also_;
  MemberTag<CallQueue> look_tag_{this, &CallQueue::OnAlarm};
  Mutex mutex_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  grpc::Alarm alarm_;
  std::thread thread_;
};

}  // namespace nsa::metadata::server
