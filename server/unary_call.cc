#include "server/unary_call.h"

#include <algorithm>
#include <memory>
#include <string>

#include "absl/time/time.h"
#include "server/admission.h"
#include "server/check_call.h"
#include "server/recycled.h"

namespace nsa::metadata::server {
namespace {

// More than any max_rpc_duration.
constexpr int64_t kMostSeconds = 365 * 24 * 3600;

}  // namespace

UnaryCall::UnaryCall(Method method, CallContext& context, CallQueue& queue)
    : place_(context.live), context_(context), queue_(queue), method_(method) {}

void UnaryCall::AwaitCall() {
  server_context_.AsyncNotifyWhenDone(Started(&done_tag_));
  Request(Started(&arrived_tag_));
}

void UnaryCall::OnArrived(bool ok) {
  if (!ok) {  // the server is shut down; the other tags never come
    delete this;
    return;
  }
  arrived_ = Clock::now();
  place_.Begin();
  queue_.Watch(*this);
  context_.metrics.CallStarted(method_);
  caller_ = context_.callers.CallerOf(server_context_);
  const int64_t metadata_bytes = MetadataBytes(server_context_);
  context_.delivered.Add(caller_.slot, request_.Length() + MetadataWireBytes(server_context_, metadata_bytes));
  MakeSuccessor();
  if (IsFrequent() && queue_.WantsMoreTakers(method_)) MakeSuccessor();
  std::optional<Refusal> refusal = CheckCall(server_context_, method_, caller_, metadata_bytes, context_);
  if (!refusal) refusal = CheckMessage(request_, context_);
  if (refusal) {
    SendRefusal(*refusal);
  } else {
    Handle();
  }
}

TimePoint UnaryCall::Deadline() const {
  gpr_timespec deadline = server_context_.raw_deadline();
  if (deadline.clock_type != GPR_CLOCK_MONOTONIC) {  // which is our clock
    deadline = gpr_convert_clock_type(deadline, GPR_CLOCK_MONOTONIC);
  }
  // A caller may ask for more years than a TimePoint can hold, or for time that is long over.
  const int64_t arrived_s = std::chrono::duration_cast<std::chrono::seconds>(arrived_.time_since_epoch()).count();
  const int64_t seconds = std::clamp(deadline.tv_sec, arrived_s - 1, arrived_s + kMostSeconds);
  return TimePoint(std::chrono::seconds(seconds) + std::chrono::nanoseconds(deadline.tv_nsec));
}

void UnaryCall::Send(ReplyMessage reply, const std::optional<Journey>& journey) {
  request_.Clear();  // it may be long until the answer is taken
  journey_ = journey;
  const TimePoint answered = journey ? journey->framed : Clock::now();
  answered_.store(answered.time_since_epoch().count(), std::memory_order_relaxed);
  code_ = grpc::StatusCode::OK;
  queue_.AnswersUnary(caller_.slot, reply.bytes.Length());
  writer_.Finish(reply, grpc::Status::OK, Started(&sent_tag_));
}

void UnaryCall::SendRefusal(const Refusal& refusal) {
  request_.Clear();
  context_.metrics.Refused(refusal.reason);
  AddPushback(refusal, server_context_);
  answered_.store(Clock::now().time_since_epoch().count(), std::memory_order_relaxed);
  code_ = refusal.code;
  refused_ = refusal.reason;
  journey_ = refusal.journey;
  queue_.AnswersUnary(caller_.slot, /*bytes=*/0);
  writer_.FinishWithError(ToStatus(refusal), Started(&sent_tag_));
}

void UnaryCall::OnSent(bool ok) {
  queue_.UnaryAnswered();
  const TimePoint now = Clock::now();
  const uint64_t total_ns = Nanoseconds(arrived_, now);
  const uint64_t send_ns = Nanoseconds(TimePoint(Clock::duration(answered_.load(std::memory_order_relaxed))), now);
  context_.metrics.CallHandled(method_, code_, total_ns);
  if (ok && code_ == grpc::StatusCode::OK && journey_) context_.metrics.Sent(send_ns);
  if (!ok && !refused_) refused_ = v1::REFUSAL_REASON_CANCELLED;  // or out of reach
  context_.slow_calls.Note(server_context_, method_, refused_, total_ns, send_ns, journey_);
  if (refused_ == v1::REFUSAL_REASON_CALLER_SHARE) context_.slow_calls.NoteOverShare(server_context_);
  if (!ok && code_ == grpc::StatusCode::OK) context_.metrics.Cancelled(Stage::kSend);
  Unref();
}

void UnaryCall::OnDone(bool) {
  if (server_context_.IsCancelled()) cancelled_.store(true, std::memory_order_relaxed);
  Unref();
}

void UnaryCall::Look(TimePoint now) {
  const Clock::rep answered = answered_.load(std::memory_order_relaxed);
  if (answered == 0) return;
  const auto waits = now - TimePoint(Clock::duration(answered));
  if (waits > absl::ToChronoNanoseconds(context_.options.write_stall_timeout)) server_context_.TryCancel();
}

void UnaryCall::Unref() {
  if (pending_events_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  delete this;
}

void ComputeCall::Handle() {
  auto task = std::make_unique<Task>();
  task->AnswerTo(*this);
  task->times.arrived = arrived();
  task->deadline = arrived() + absl::ToChronoNanoseconds(context_.options.max_rpc_duration);
  task->AddCallersDeadline(Deadline());
  task->account = caller().account;
  queue_.Begins(request_.Length());
  std::optional<Refusal> refusal = Read(*task);
  request_.Clear();
  task->times.parsed = Clock::now();
  if (!refusal && task->deadline <= task->times.parsed) {
    context_.metrics.Expired(Stage::kAdmit);
    refusal = task->Late(task->times.parsed);
  }
  if (!refusal) {
    queue_.Begins(task->expansion.layout.block_bytes());
    const std::optional<NoRoom> why = Admit(context_, &task);
    if (!why) return;
    refusal = RefusalFor(*why, context_, *task);
  }
  task->Refuse(*refusal);
}

namespace {

class ExpandCall final : public ComputeCall, public Recycled<ExpandCall> {
 public:
  ExpandCall(CallContext& context, CallQueue& queue) : ComputeCall(Method::kExpand, context, queue) { AwaitCall(); }

 private:
  void Request(void* tag) override {
    context_.service.RequestExpand(&server_context_, &request_, &writer_, queue_.get(), tag);
  }
  void MakeSuccessor() override { new ExpandCall(context_, queue_); }
  std::optional<Refusal> Read(Task& task) override;
};

std::optional<Refusal> ExpandCall::Read(Task& task) {
  // One a thread: it keeps its memory from call to call.
  thread_local v1::ExpandRequest request;
  std::optional<Refusal> refusal = Decode(request_, &request);
  if (!refusal) refusal = Validate(request, context_.options.request, Framing::kUnary, &task.expansion);
  if (!refusal) task.TakeLengths(&request);
  if (request_.Length() > kKeptRequestBytes) request = {};
  return refusal;
}

class GetServerInfoCall final : public UnaryCall {
 public:
  GetServerInfoCall(CallContext& context, CallQueue& queue) : UnaryCall(Method::kGetServerInfo, context, queue) {
    AwaitCall();
  }

 private:
  void Request(void* tag) override {
    context_.service.RequestGetServerInfo(&server_context_, &request_, &writer_, queue_.get(), tag);
  }
  void MakeSuccessor() override { new GetServerInfoCall(context_, queue_); }
  void Handle() override {
    v1::GetServerInfoRequest request;
    if (const std::optional<Refusal> refusal = Decode(request_, &request)) return SendRefusal(*refusal);
    const grpc::Slice info(context_.batcher.device_lost() ? context_.infos.device_lost : context_.infos.info);
    Send(ReplyMessage(&info, 1));
  }
};

}  // namespace

void AwaitExpand(CallContext& context, CallQueue& queue) { new ExpandCall(context, queue); }
void AwaitGetServerInfo(CallContext& context, CallQueue& queue) { new GetServerInfoCall(context, queue); }

}  // namespace nsa::metadata::server
