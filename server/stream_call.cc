#include "server/stream_call.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/admission.h"
#include "server/check_call.h"

namespace nsa::metadata::server {
namespace {

// As many refusals may wait for one stream's caller to read them.
constexpr int64_t kMostRefusals = 8;

// UNAVAILABLE, since an item may be on its way meanwhile: it was not taken, and may go over another stream.
Refusal Idle(absl::Duration timeout) {
  return Later(v1::REFUSAL_REASON_DEADLINE,
               absl::StrCat("no item came on the stream within stream_idle_timeout, ", absl::FormatDuration(timeout)),
               0, 0, std::chrono::milliseconds(1));
}

}  // namespace

StreamCall::StreamCall(CallContext& context, CallQueue& queue)
    : place_(context.live), context_(context), queue_(queue) {
  server_context_.AsyncNotifyWhenDone(Started(&done_tag_));
  context_.service.RequestExpandStream(&server_context_, &stream_, queue_.get(), Started(&arrived_tag_));
}

void StreamCall::OnArrived(bool ok) {
  if (!ok) {  // the server is shut down; the other tags never come
    delete this;
    return;
  }
  arrived_ = Clock::now();
  place_.Begin();
  context_.metrics.CallStarted(Method::kExpandStream);
  Await(context_, queue_);
  caller_ = context_.callers.CallerOf(server_context_);
  const int64_t metadata_bytes = MetadataBytes(server_context_);
  context_.delivered.Add(caller_.slot, MetadataWireBytes(server_context_, metadata_bytes));
  {
    MutexLock lock(&mutex_);
    last_message_ = arrived_;
  }
  const bool draining = !context_.streams.Add(this);
  MutexLock lock(&mutex_);
  refusal_ = CheckCall(server_context_, Method::kExpandStream, caller_, metadata_bytes, context_);
  reads_done_ = refusal_.has_value();
  draining_ = draining_ || draining;
  Pump();
}

void StreamCall::OnRead(bool ok) {
  bool take = false;
  {
    MutexLock lock(&mutex_);
    // A drain may have ended the call while this message was on its way here.
    take = ok && !finishing_;
    const TimePoint now = Clock::now();
    back_to_back_ = now - last_message_ < kBackToBack;
    last_message_ = now;
    taking_ = take;
  }
  retry_after_ = kRetryFirst;
  if (take) Take(incoming_);
  incoming_.Clear();
  {
    MutexLock lock(&mutex_);
    taking_ = false;
    reading_ = false;
    if (!ok) reads_done_ = true;
    Pump();
  }
  EndOperation();
}

void StreamCall::Take(const grpc::ByteBuffer& message) {
  context_.delivered.Add(caller_.slot, message.Length());
  if (std::optional<Refusal> refusal = CheckMessage(message, context_)) {
    // Whose it was can't be told: it ends the stream, once what came before is answered.
    MutexLock lock(&mutex_);
    refusal_ = std::move(refusal);
    reads_done_ = true;
    return;
  }
  queue_.Begins(message.Length());
  auto task = std::make_unique<Task>();
  task->times.arrived = Clock::now();
  task->account = caller_.account;
  v1::ExpandStreamRequest request;
  if (const std::optional<Refusal> refusal = Decode(message, &request)) {
    RefuseMessage(0, *refusal);
  } else if (request.has_cancel_request_id()) {
    Cancel(request.cancel_request_id());
  } else if (request.has_expand()) {
    TakeExpand(std::move(task), request);
  } else {
    RefuseMessage(0, Malformed("without an action", static_cast<int64_t>(message.Length())));
  }
}

void StreamCall::TakeExpand(std::unique_ptr<Task> task, v1::ExpandStreamRequest& message) {
  const uint64_t id = message.expand().request_id();
  // Again: the policy may have become another since the call began.
  if (const std::optional<Refusal> refusal = context_.trust.Check(server_context_, Method::kExpandStream)) {
    RefuseMessage(id, *refusal);
    return;
  }
  {
    MutexLock lock(&mutex_);
    if (ids_.insert(id).second) {
      const auto item = items_.emplace(id, std::make_unique<Item>(*this, id)).first;
      ++unanswered_;
      ++operations_;
      task->AnswerTo(*item->second);
    }
  }
  if (!task->has_responder()) {
    RefuseMessage(
        id, Invalid(v1::REFUSAL_REASON_DUPLICATE_ID, absl::StrCat("request_id ", id, " is in flight on this stream"),
                    "request_id", static_cast<int64_t>(id), /*limit=*/0));
    return;
  }
  SetDeadline(message, *task);
  std::optional<Refusal> refusal =
      Validate(message.expand(), context_.options.request, Framing::kStream, &task->expansion);
  task->times.parsed = Clock::now();
  if (refusal) {
    task->Refuse(*refusal);
  } else {
    task->TakeLengths(message.mutable_expand());
    if (const int64_t bytes = task->lengths_bytes(); bytes > 0) {
      task->lengths_permit = context_.lengths.ReserveRead(bytes, task->account);
      if (!task->lengths_permit) {  // it would wait in the room that there is not
        task->Refuse(RefusalFor(NoRoom::kLengths, context_, *task));
        return;
      }
    }
    if (std::unique_ptr<Task> left = TryAdmit(std::move(task))) {
      MutexLock lock(&mutex_);
      AwaitRoom(std::move(left));
    }
  }
}

std::unique_ptr<Task> StreamCall::TryAdmit(std::unique_ptr<Task> task) {
  if (const TimePoint now = Clock::now(); task->deadline <= now) {
    context_.metrics.Expired(Stage::kAdmit);
    task->Refuse(task->Late(now));
    return nullptr;
  }
  if (task->cancelled()) {
    context_.metrics.Cancelled(Stage::kAdmit);
    task->Refuse(Cancelled());
    return nullptr;
  }
  queue_.Begins(task->expansion.layout.block_bytes());
  return Admit(context_, &task) ? std::move(task) : nullptr;
}

void StreamCall::AwaitRoom(std::unique_ptr<Task> task) {
  Clock::duration longest = retry_after_;
  if (task != nullptr) longest = std::clamp(task->deadline - Clock::now(), Clock::duration::zero(), longest);
  const auto wait = std::chrono::ceil<std::chrono::system_clock::duration>(longest);
  waiting_task_ = std::move(task);
  awaits_room_ = true;
  retry_.Set(queue_.get(), std::chrono::system_clock::now() + wait, StartOperation(&retry_tag_));
  retry_after_ = std::min(2 * retry_after_, kRetryMost);
}

void StreamCall::OnRetry(bool) {
  // Until it is known whether it still waits, the next item isn't read: there is room for one that waits.
  std::unique_ptr<Task> left = waiting_task_ == nullptr ? nullptr : TryAdmit(std::move(waiting_task_));
  {
    MutexLock lock(&mutex_);
    awaits_room_ = false;
    if (left != nullptr) AwaitRoom(std::move(left));
    Pump();
  }
  EndOperation();
}

void StreamCall::Cancel(uint64_t id) {
  MutexLock lock(&mutex_);
  const auto item = items_.find(id);
  if (item != items_.end()) item->second->Cancel();
}

void StreamCall::SetDeadline(const v1::ExpandStreamRequest& message, Task& task) const {
  const TimePoint arrived = task.times.arrived;
  task.deadline = arrived + absl::ToChronoNanoseconds(context_.options.max_rpc_duration);
  if (!message.has_timeout()) return;
  // Both ends are far beyond any deadline, and near enough for the clock.
  const int64_t seconds = std::clamp<int64_t>(message.timeout().seconds(), -1, 365 * 24 * 3600);
  task.AddCallersDeadline(arrived + std::chrono::seconds(seconds) +
                          std::chrono::nanoseconds(message.timeout().nanos()));
}

void StreamCall::Answer(Item& item, Messages messages, std::optional<v1::RefusalReason> refused,
                        const std::optional<Journey>& journey) {
  {
    MutexLock lock(&mutex_);
    const TimePoint now = Clock::now();
    for (size_t i = 0; i < messages.size(); ++i) {
      const bool last = i + 1 == messages.size();
      outbox_.push_back({.message = std::move(messages[i]),
                         .item_arrived = item.arrived(),
                         .answered = now,
                         .last = last,
                         .whole = messages.size() == 1,
                         .refused = refused,
                         .journey = journey,
                         .frees_id = last ? std::optional(item.id()) : std::nullopt});
    }
    if (refused) ++refusals_;
    items_.erase(item.id());
    Pump();
  }
  EndOperation();
}

void StreamCall::Refuse(Item& item, const Refusal& refusal) {
  context_.metrics.Refused(refusal.reason);
  Messages answer;
  answer.push_back(Encode(item.id(), refusal));
  Answer(item, std::move(answer), refusal.reason, refusal.journey);
}

void StreamCall::RefuseMessage(uint64_t id, const Refusal& refusal) {
  context_.metrics.Refused(refusal.reason);
  const TimePoint now = Clock::now();
  MutexLock lock(&mutex_);
  ++unanswered_;
  ++refusals_;
  outbox_.push_back({.message = Encode(id, refusal),
                     .item_arrived = now,
                     .answered = now,
                     .last = true,
                     .whole = true,
                     .refused = refusal.reason,
                     .journey = std::nullopt,
                     .frees_id = std::nullopt});
  Pump();
}

ReplyMessage StreamCall::Encode(uint64_t id, const Refusal& refusal) {
  v1::ExpandStreamResponse response;
  *response.mutable_refusal() = ToProto(refusal, id);
  response.set_last_chunk(true);
  const grpc::Slice slice(response.SerializeAsString());
  return ReplyMessage(&slice, 1);
}

void StreamCall::OnWritten(bool ok) {
  std::optional<Answered> answered;
  {
    MutexLock lock(&mutex_);
    writing_ = false;
    const Outgoing& written = outbox_.front();
    const TimePoint now = Clock::now();
    last_message_ = now;
    item_send_ns_ += Nanoseconds(write_started_, now);
    if (written.last) {
      --unanswered_;
      const uint64_t total_ns = Nanoseconds(written.item_arrived, now);
      const uint64_t send_ns = std::exchange(item_send_ns_, 0);
      context_.metrics.ItemHandled(total_ns);
      if (written.refused) --refusals_;
      if (!written.refused && ok) context_.metrics.Sent(send_ns);
      if (!written.refused && !ok) context_.metrics.Cancelled(Stage::kSend);
      const auto refused = ok || written.refused ? written.refused : v1::REFUSAL_REASON_CANCELLED;
      answered = {.refused = refused, .journey = written.journey, .total_ns = total_ns, .send_ns = send_ns};
    }
    outbox_.pop_front();
    if (!ok) caller_gone_ = true;
    Pump();
  }
  if (answered) Note(*answered);
  EndOperation();
}

void StreamCall::OnDone(bool) {
  if (server_context_.IsCancelled()) caller_gone_ = true;
  {
    MutexLock lock(&mutex_);
    Pump();
  }
  EndOperation();
}

void StreamCall::OnFinished(bool) { EndOperation(); }

void StreamCall::Drain() {
  MutexLock lock(&mutex_);
  draining_ = true;
  Pump();
}

void StreamCall::Look(TimePoint now, bool crowded) {
  MutexLock lock(&mutex_);
  const Options& options = context_.options;
  // Each chunk taken just in time makes an answer of many last for half an hour: for that there has to be room.
  const TimePoint waits_since = crowded && writing_ ? outbox_.front().answered : write_started_;
  if (writing_ && now - waits_since > absl::ToChronoNanoseconds(options.write_stall_timeout)) {
    server_context_.TryCancel();
  } else if (unanswered_ == 0 && !reads_done_ && !finishing_ && !draining_ && !taking_ &&
             now - last_message_ > absl::ToChronoNanoseconds(options.stream_idle_timeout)) {
    reads_done_ = true;
    refusal_ = Idle(options.stream_idle_timeout);
    Pump();
  }
}

void StreamCall::Pump() {
  PumpRead();
  PumpWrite();
  PumpFinish();
  NoteWait();
}

bool StreamCall::IsFull() const {
  // Refusals take memory that no budget counts.
  return unanswered_ >= context_.options.max_stream_inflight || refusals_ >= kMostRefusals;
}

void StreamCall::NoteWait() {
  const bool waits = (awaits_room_ || IsFull()) && !reading_ && !reads_done_ && !draining_ && !finishing_;
  if (waits == waits_) return;
  waits_ = waits;
  if (waits) {
    context_.delivered.BeginWait(caller_.slot);
  } else {
    context_.delivered.EndWait(caller_.slot);
  }
}

void StreamCall::PumpRead() {
  if (reading_ || awaits_room_ || reads_done_ || draining_ || finishing_) return;
  if (IsFull()) return;
  // One with nothing in flight reads: else it would not see its end, nor its idle time.
  if (unanswered_ > 0 && !caller_gone_ && !context_.lengths.MayReadOn(caller_.account)) {
    AwaitRoom(nullptr);
    return;
  }
  reading_ = true;
  stream_.Read(&incoming_, StartOperation(&read_tag_));
}

void StreamCall::PumpWrite() {
  if (caller_gone_ && !writing_) {
    // Nobody is there to read.
    const TimePoint now = Clock::now();
    for (const Outgoing& outgoing : outbox_) {
      if (!outgoing.last) continue;
      --unanswered_;
      const uint64_t total_ns = Nanoseconds(outgoing.item_arrived, now);
      context_.metrics.ItemHandled(total_ns);
      if (!outgoing.refused) context_.metrics.Cancelled(Stage::kSend);
      unwritten_.push_back({.refused = outgoing.refused.value_or(v1::REFUSAL_REASON_CANCELLED),
                            .journey = outgoing.journey,
                            .total_ns = total_ns,
                            .send_ns = 0});
    }
    outbox_.clear();
    refusals_ = 0;
  }
  if (writing_ || outbox_.empty()) return;
  writing_ = true;
  write_started_ = Clock::now();
  if (back_to_back_ && outbox_.front().whole) queue_.Hold(caller_.slot, outbox_.front().message.bytes.Length());
  if (outbox_.front().frees_id) ids_.erase(*outbox_.front().frees_id);
  stream_.Write(outbox_.front().message, StartOperation(&written_tag_));
}

void StreamCall::PumpFinish() {
  const bool ending = reads_done_ || draining_ || caller_gone_;
  if (!ending || finishing_ || unanswered_ > 0 || awaits_room_ || taking_) return;
  finishing_ = true;
  if (draining_ && !reads_done_) refusal_ = Draining();
  if (refusal_) {
    context_.metrics.Refused(refusal_->reason);
    AddPushback(*refusal_, server_context_);
  }
  const grpc::Status status = refusal_ ? ToStatus(*refusal_) : grpc::Status::OK;
  code_ = status.error_code();
  stream_.Finish(status, StartOperation(&finished_tag_));
}

void* StreamCall::StartOperation(CompletionTag* tag) {
  ++operations_;
  return Started(tag);
}

void StreamCall::Note(const Answered& answered) {
  context_.slow_calls.Note(server_context_, Method::kExpandStream, answered.refused, answered.total_ns,
                           answered.send_ns, answered.journey);
}

void StreamCall::EndOperation() {
  grpc::StatusCode code = grpc::StatusCode::OK;
  for (std::vector<Answered> unwritten;;) {
    for (const Answered& item : unwritten) Note(item);
    unwritten.clear();
    MutexLock lock(&mutex_);
    if (unwritten_.empty()) {
      if (--operations_ > 0) return;
      code = code_;
      break;
    }
    unwritten.swap(unwritten_);
  }
  // Only now is it known: a caller that goes while nothing is in flight looks at first like one that sends no more.
  if (code == grpc::StatusCode::OK && server_context_.IsCancelled()) code = grpc::StatusCode::CANCELLED;
  context_.metrics.CallHandled(Method::kExpandStream, code, Nanoseconds(arrived_, Clock::now()));
  context_.streams.Remove(this);
  delete this;
}

}  // namespace nsa::metadata::server
