// The life of a unary call on a completion queue, the same for every method.
#pragma once

#include <atomic>
#include <optional>
#include <utility>

#include "grpcpp/server_context.h"
#include "grpcpp/support/async_unary_call.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/call_queue.h"
#include "server/clock.h"
#include "server/completion_queue.h"
#include "server/refusal.h"
#include "server/service.h"
#include "server/task.h"

namespace nsa::metadata::server {

// Waits for a call of its method, makes its successor, handles the call, and deletes itself once gRPC has sent the
// answer and is done with the call. Both of those are events on the queue, in either order.
class UnaryCall : public CallQueue::Call {
 protected:
  UnaryCall(Method method, CallContext& context, CallQueue& queue);
  ~UnaryCall() override = default;

  // Asks the service for a call; `tag` comes back when it has arrived.
  virtual void Request(void* tag) = 0;
  // Makes the object that takes the next call of the method.
  virtual void MakeSuccessor() = 0;
  // Whether many calls of the method may come at once.
  virtual bool IsFrequent() const { return false; }
  // Answers the call that has arrived, now or later, with exactly one of Send and SendRefusal.
  virtual void Handle() = 0;

  void AwaitCall();
  // Any thread. The object may be gone when they return.
  void Send(ReplyMessage reply, const std::optional<Journey>& journey = std::nullopt);
  void SendRefusal(const Refusal& refusal);

  Method method() const { return method_; }
  bool caller_gone() const { return cancelled_.load(std::memory_order_relaxed); }
  TimePoint arrived() const { return arrived_; }
  const Caller& caller() const { return caller_; }
  // The caller's deadline.
  TimePoint Deadline() const;

  LiveCalls::Place place_;
  CallContext& context_;
  CallQueue& queue_;
  grpc::ServerContext server_context_;
  grpc::ByteBuffer request_;
  AsyncService::UnaryWriter writer_{&server_context_};

 private:
  void OnArrived(bool ok);
  void OnSent(bool ok);
  void OnDone(bool ok);
  void Unref();
  // Cancels it when its answer has waited too long for its reader.
  void Look(TimePoint now) override;

  const Method method_;
  MemberTag<UnaryCall> arrived_tag_{this, &UnaryCall::OnArrived};
  MemberTag<UnaryCall> sent_tag_{this, &UnaryCall::OnSent};
  MemberTag<UnaryCall> done_tag_{this, &UnaryCall::OnDone};
  TimePoint arrived_;
  Caller caller_;
  // Clock's ticks; 0: not yet. Written by whoever answers.
  std::atomic<Clock::rep> answered_{0};
  grpc::StatusCode code_ = grpc::StatusCode::OK;
  std::optional<v1::RefusalReason> refused_;
  std::optional<Journey> journey_;
  std::atomic<bool> cancelled_{false};
  // The answer sent, and the call done.
  std::atomic<int> pending_events_{2};
};

// A call that is answered with an expansion.
class ComputeCall : public UnaryCall, public Responder {
 public:
  bool cancelled() const override { return caller_gone(); }
  void Reply(Messages reply, const Journey& journey) override { Send(std::move(reply.front()), journey); }
  void Refuse(const Refusal& refusal) override { SendRefusal(refusal); }
  bool IsFrequent() const override { return true; }

 protected:
  using UnaryCall::UnaryCall;

  // Reads request_ into `task`'s expansion, whose lengths become the task's own, or says what is wrong with it.
  virtual std::optional<Refusal> Read(Task& task) = 0;

 private:
  void Handle() override;
};

// Begins to take Expand calls from `queue`.
void AwaitExpand(CallContext& context, CallQueue& queue);
// Likewise GetServerInfo.
void AwaitGetServerInfo(CallContext& context, CallQueue& queue);

}  // namespace nsa::metadata::server
