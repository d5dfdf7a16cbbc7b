#include "client/stream.h"

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/deadlines.h"
#include "client/status.h"

namespace nsa::metadata::client {
namespace {

void SetTimeout(absl::Duration timeout, v1::ExpandStreamRequest& message) {
  if (timeout == absl::InfiniteDuration()) return;
  absl::Duration rest;
  message.mutable_timeout()->set_seconds(absl::IDivDuration(timeout, absl::Seconds(1), &rest));
  message.mutable_timeout()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
}

std::shared_ptr<v1::ExpandStreamRequest> MessageOf(const Request& request, absl::Duration timeout) {
  auto message = std::make_shared<v1::ExpandStreamRequest>();
  *message->mutable_expand() = ToProto(request);
  SetTimeout(timeout, *message);
  return message;
}

std::shared_ptr<v1::ExpandStreamRequest> CancelOf(uint64_t request_id) {
  auto message = std::make_shared<v1::ExpandStreamRequest>();
  message->set_cancel_request_id(request_id);
  return message;
}

// What an item without an answer gets when its last call ended with `status`.
absl::Status Unanswered(const absl::Status& status) {
  return status.ok() ? absl::InternalError("the server ended the stream before it had answered") : status;
}

}  // namespace

// One call, which tells its stream what happens.
class ExpandStream::Call final : public grpc::ClientBidiReactor<v1::ExpandStreamRequest, v1::ExpandStreamResponse> {
 public:
  explicit Call(ExpandStream& stream) : stream_(stream) {
    stream.stub_->async()->ExpandStream(&context_, this);
    AddHold();
    StartRead(&incoming_);
    StartCall();
  }
  void Cancel() { context_.TryCancel(); }
  // Of the read under way, or of the reaction to it.
  v1::ExpandStreamResponse& incoming() { return incoming_; }

  // Guarded by the stream's mutex.
  bool writing = false;
  // While it is set, the reactor has a hold, so that writes may start outside of reactions.
  bool may_write = true;

 private:
  void OnReadDone(bool ok) override { stream_.OnRead(*this, ok); }
  void OnWriteDone(bool ok) override { stream_.OnWritten(*this, ok); }
  void OnDone(const grpc::Status& status) override {
    // Whoever holds the stream's mutex may look at this until OnDone has it.
    stream_.OnDone(std::unique_ptr<Call>(this), ToAbslStatus(status));
  }

  ExpandStream& stream_;
  grpc::ClientContext context_;
  v1::ExpandStreamResponse incoming_;
};

ExpandStream::ExpandStream(std::shared_ptr<v1::MetadataService::Stub> stub, const StreamOptions& options,
                           const Retry& retry, absl::Duration timeout)
    : stub_(std::move(stub)), max_queued_(static_cast<size_t>(options.max_queued)), retry_(retry), timeout_(timeout) {}

ExpandStream::~ExpandStream() { (void)Close(); }

absl::Status ExpandStream::Send(const Request& request, Callback callback, std::optional<absl::Duration> timeout) {
  const absl::Time deadline = absl::Now() + timeout.value_or(timeout_);
  std::shared_ptr<v1::ExpandStreamRequest> message = MessageOf(request, timeout.value_or(timeout_));
  MutexLock lock(&mutex_);
  while (outbox_.size() >= max_queued_ && !closed_ && absl::Now() < deadline) changed_.WaitUntil(mutex_, deadline);
  if (closed_) return absl::FailedPreconditionError("the stream is closed");
  if (outbox_.size() >= max_queued_) {
    return absl::DeadlineExceededError(
        absl::StrCat("the item was not sent: ", outbox_.size(), " messages before it wait to be written"));
  }
  const auto [place, is_new] = items_.try_emplace(request.request_id);
  if (!is_new) {
    return absl::AlreadyExistsError(absl::StrCat("request_id ", request.request_id, " is in flight on this stream"));
  }
  place->second = std::make_shared<Item>();
  Item& item = *place->second;
  item.sequence = next_sequence_++;
  item.message = message;
  item.deadline = deadline;
  item.callback = std::move(callback);
  outbox_.push_back(std::move(message));
  SetExpiry(deadline + Deadlines::kGrace);
  Pump();
  return absl::OkStatus();
}

void ExpandStream::Cancel(uint64_t request_id) {
  MutexLock lock(&mutex_);
  const auto item = items_.find(request_id);
  // One cancel an item: they don't count against max_queued.
  if (item == items_.end() || item->second->cancel_sent) return;
  item->second->cancel_sent = true;
  outbox_.push_back(CancelOf(request_id));
  Pump();
}

absl::Status ExpandStream::Close(std::optional<absl::Time> deadline) {
  const absl::Time effective = deadline.value_or(absl::Now() + timeout_);
  {
    MutexLock lock(&mutex_);
    closed_ = true;
    Pump();
    CutIfForNobody();
    changed_.SignalAll();
    while (!Idle() && absl::Now() < effective) changed_.WaitUntil(mutex_, effective);
    if (Idle()) return end_status_;
  }
  Abort(absl::DeadlineExceededError("the stream was closed, and the answer did not come in time"));
  MutexLock lock(&mutex_);
  while (!Idle()) changed_.Wait(mutex_);
  return end_status_;
}

void ExpandStream::OnRead(Call& call, bool ok) {
  std::optional<Answer> answer;
  if (ok) {
    absl::StatusOr<std::optional<Answer>> taken = TakeMessage(call.incoming());
    if (taken.ok()) {
      answer = *std::move(taken);
    } else {
      Abort(taken.status());
      ok = false;
    }
  }
  {
    MutexLock lock(&mutex_);
    if (ok) {
      call.StartRead(&call.incoming());
    } else {
      StopWriting(call);
    }
  }
  // The next message may be read meanwhile.
  if (answer.has_value()) answer->callback(std::move(answer->response));
}

void ExpandStream::OnWritten(Call& call, bool ok) {
  MutexLock lock(&mutex_);
  call.writing = false;
  outbox_.pop_front();
  if (!ok) StopWriting(call);
  Pump();
  changed_.SignalAll();
}

void ExpandStream::OnDone(std::unique_ptr<Call> call, const absl::Status& status) {
  std::vector<Answer> answers;
  {
    MutexLock lock(&mutex_);
    call_ = nullptr;
    failures_in_a_row_ = call_answered_ ? 1 : failures_in_a_row_ + 1;
    answers = End(status);
  }
  call.reset();  // its channel too, while the stream is sure to be there
  Report(std::move(answers));
}

void ExpandStream::OnBackoff() {
  std::vector<Answer> answers;
  {
    MutexLock lock(&mutex_);
    backing_off_ = false;
    if (abort_status_.ok()) {
      Pump();
      changed_.SignalAll();  // there may be nothing left to send
      return;
    }
    answers = End(absl::OkStatus());
  }
  Report(std::move(answers));
}

void ExpandStream::OnExpiry() {
  std::vector<Answer> answers;
  {
    MutexLock lock(&mutex_);
    expiring_ = false;
    const absl::Time overdue = absl::Now() - Deadlines::kGrace;
    absl::Time next = absl::InfiniteFuture();
    for (auto it = items_.begin(); it != items_.end();) {
      Item& item = *it->second;
      if (item.expired || item.deadline > overdue) {
        if (!item.expired) next = std::min(next, item.deadline);
        ++it;
        continue;
      }
      answers.push_back({std::move(item.callback),
                         absl::DeadlineExceededError("the item's timeout passed without an answer of the server's")});
      it = Expire(item, it->first) ? items_.erase(it) : std::next(it);
    }
    SetExpiry(next + Deadlines::kGrace);
    CutIfForNobody();
    ++reporting_;
    Pump();
    changed_.SignalAll();
  }
  Report(std::move(answers));
}

void ExpandStream::CutIfForNobody() {
  const auto expired = [](const auto& item) { return item.second->expired; };
  if (!closed_ || call_ == nullptr || items_.empty() || !std::ranges::all_of(items_, expired)) return;
  if (abort_status_.ok()) abort_status_ = absl::DeadlineExceededError("the server did not answer all items in time");
  call_->Cancel();
}

bool ExpandStream::Expire(Item& item, uint64_t request_id) {
  item.expired = true;
  const auto first = outbox_.begin() + (call_ != nullptr && call_->writing ? 1 : 0);
  const auto unsent = std::find(first, outbox_.end(), item.message);
  if (unsent != outbox_.end()) {
    outbox_.erase(unsent);
    return true;
  }
  // A server that is there stops to work on it, and says so, which frees the id.
  if (!std::exchange(item.cancel_sent, true)) outbox_.push_back(CancelOf(request_id));
  return false;
}

void ExpandStream::SetExpiry(absl::Time when) {
  if (when == absl::InfiniteFuture()) return;
  when = std::max(when, absl::UnixEpoch());  // gRPC takes what is before for never
  if (expiring_) {
    // It runs at once then, and sets the next one.
    if (when < expiry_at_) expiry_->Cancel();
    return;
  }
  expiring_ = true;
  expiry_at_ = when;
  expiry_ = std::make_unique<grpc::Alarm>();
  expiry_->Set(absl::ToChronoTime(when), [this](bool) { OnExpiry(); });
}

void ExpandStream::Report(std::vector<Answer> answers) {
  for (Answer& answer : answers) answer.callback(std::move(answer.response));
  MutexLock lock(&mutex_);
  --reporting_;
  // Before the lock is released: the stream may be gone after that.
  changed_.SignalAll();
}

absl::StatusOr<std::optional<ExpandStream::Answer>> ExpandStream::TakeMessage(v1::ExpandStreamResponse& message) {
  if (message.result_case() == v1::ExpandStreamResponse::RESULT_NOT_SET) {
    return absl::InternalError("the server sent a message without a result");
  }
  const uint64_t id = message.has_refusal() ? message.refusal().request_id() : message.expansion().request_id();
  const absl::StatusOr<std::shared_ptr<Item>> item = FindItem(id);
  if (!item.ok()) return item.status();
  Answer answer;
  if (message.has_refusal()) {
    answer.response = ToAbslStatus(message.refusal());
  } else {
    const absl::Status appended = (*item)->chunks.Append(message);
    if (!appended.ok()) return appended;
    if (!message.last_chunk()) return std::nullopt;
    answer.response = (*item)->chunks.Take();
  }
  MutexLock lock(&mutex_);
  call_answered_ = true;
  const bool expired = (*item)->expired;
  answer.callback = std::move((*item)->callback);
  items_.erase(id);
  if (expired) return std::nullopt;
  return answer;
}

absl::StatusOr<std::shared_ptr<ExpandStream::Item>> ExpandStream::FindItem(uint64_t request_id) {
  MutexLock lock(&mutex_);
  const auto item = items_.find(request_id);
  if (item != items_.end()) return item->second;
  return absl::InternalError(
      absl::StrCat("the server sent an answer to request_id ", request_id, ", which is not in flight"));
}

void ExpandStream::Abort(const absl::Status& status) {
  MutexLock lock(&mutex_);
  if (abort_status_.ok()) abort_status_ = status;
  if (call_ != nullptr) call_->Cancel();
  if (backing_off_) backoff_->Cancel();
}

std::vector<ExpandStream::Answer> ExpandStream::End(const absl::Status& status) {
  const bool cut = !abort_status_.ok();
  end_status_ = std::exchange(abort_status_, absl::OkStatus());
  if (!cut) end_status_ = status;
  // A server that is shut down while a call is on its way to it may say CANCELLED, though nobody did.
  const bool again = !cut && (absl::IsUnavailable(status) || absl::IsCancelled(status));
  const absl::Time sent_again = absl::Now() + (again ? NextBackoff(status) : absl::ZeroDuration());
  std::vector<Answer> answers;
  std::vector<Item*> kept;
  for (auto it = items_.begin(); it != items_.end();) {
    Item& item = *it->second;
    if (item.expired) {
      it = items_.erase(it);
      continue;
    }
    ++item.attempts;
    if (again && item.attempts < retry_.max_attempts && !item.cancel_sent && sent_again < item.deadline) {
      kept.push_back(&item);
      ++it;
    } else {
      const bool cancelled = again && item.cancel_sent;
      answers.push_back(
          {std::move(item.callback), cancelled ? absl::CancelledError("cancelled") : Unanswered(end_status_)});
      it = items_.erase(it);
    }
  }
  std::ranges::sort(kept, {}, &Item::sequence);
  // Cancels that wait are of no more use.
  outbox_.clear();
  for (Item* item : kept) {
    item->chunks = Chunks();
    SetTimeout(item->deadline - sent_again, *item->message);
    outbox_.push_back(item->message);
  }
  if (items_.empty() && expiring_) expiry_->Cancel();
  if (!outbox_.empty()) {
    backing_off_ = true;
    backoff_ = std::make_unique<grpc::Alarm>();
    backoff_->Set(absl::ToChronoTime(sent_again), [this](bool) { OnBackoff(); });
  }
  ++reporting_;
  changed_.SignalAll();
  return answers;
}

absl::Duration ExpandStream::NextBackoff(const absl::Status& status) {
  const std::optional<Violation> violation = ViolationOf(status);
  if (violation.has_value() && violation->retry_after.has_value()) return *violation->retry_after;
  const absl::Duration doubled = retry_.initial_backoff * (1 << std::min(failures_in_a_row_ - 1, 20));
  // So that not all callers of a server that went come to the next one at once.
  return std::min(doubled, retry_.max_backoff) * absl::Uniform(random_, 0.5, 1.0);
}

void ExpandStream::Pump() {
  if (call_ == nullptr && !backing_off_ && !outbox_.empty()) {
    call_answered_ = false;
    call_ = new Call(*this);
  }
  if (call_ == nullptr || call_->writing || !call_->may_write) return;
  if (!outbox_.empty()) {
    call_->writing = true;
    call_->StartWrite(outbox_.front().get());
  } else if (closed_) {
    call_->StartWritesDone();
    StopWriting(*call_);
  }
}

void ExpandStream::StopWriting(Call& call) {
  if (!call.may_write) return;
  call.may_write = false;
  call.RemoveHold();
}

bool ExpandStream::Idle() const { return call_ == nullptr && !backing_off_ && !expiring_ && reporting_ == 0; }

}  // namespace nsa::metadata::client
