#include "client/stream.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "client/status.h"

namespace nsa::metadata::client {
namespace {

v1::ExpandStreamRequest MessageOf(const Request& request, absl::Duration timeout) {
  v1::ExpandStreamRequest message;
  *message.mutable_expand() = ToProto(request);
  if (timeout != absl::InfiniteDuration()) {
    absl::Duration rest;
    message.mutable_timeout()->set_seconds(absl::IDivDuration(timeout, absl::Seconds(1), &rest));
    message.mutable_timeout()->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(rest)));
  }
  return message;
}

// What an item without an answer gets when the call ended with `status`.
absl::Status Unanswered(const absl::Status& status) {
  return status.ok() ? absl::InternalError("the server ended the stream before it had answered") : status;
}

}  // namespace

ExpandStream::ExpandStream(v1::MetadataService::Stub& stub, const StreamOptions& options, absl::Duration timeout)
    : max_queued_(static_cast<size_t>(options.max_queued)), timeout_(timeout) {
  stub.async()->ExpandStream(&context_, this);
  AddHold();
  StartRead(&incoming_);
  StartCall();
}

ExpandStream::~ExpandStream() { (void)Close(); }

absl::Status ExpandStream::Send(const Request& request, Callback callback, std::optional<absl::Duration> timeout) {
  v1::ExpandStreamRequest message = MessageOf(request, timeout.value_or(timeout_));
  MutexLock lock(&mutex_);
  while (outbox_.size() >= max_queued_ && !closed_ && !end_status_.has_value()) changed_.Wait(mutex_);
  if (closed_) return absl::FailedPreconditionError("the stream is closed");
  if (end_status_.has_value()) return Unanswered(*end_status_);
  const auto [item, is_new] = items_.try_emplace(request.request_id);
  if (!is_new) {
    return absl::AlreadyExistsError(absl::StrCat("request_id ", request.request_id, " is in flight on this stream"));
  }
  item->second.callback = std::move(callback);
  Write(std::move(message));
  return absl::OkStatus();
}

void ExpandStream::Cancel(uint64_t request_id) {
  MutexLock lock(&mutex_);
  const auto item = items_.find(request_id);
  // One cancel an item: they don't count against max_queued.
  if (item == items_.end() || item->second.cancel_sent) return;
  item->second.cancel_sent = true;
  v1::ExpandStreamRequest message;
  message.set_cancel_request_id(request_id);
  Write(std::move(message));
}

absl::Status ExpandStream::Close(std::optional<absl::Time> deadline) {
  const absl::Time effective = deadline.value_or(absl::Now() + timeout_);
  {
    MutexLock lock(&mutex_);
    closed_ = true;
    PumpWrite();
    changed_.SignalAll();
    while (!done_ && absl::Now() < effective) changed_.WaitUntil(mutex_, effective);
    if (done_) return *end_status_;
  }
  Abort(absl::DeadlineExceededError("the stream was closed, and the answer did not come in time"));
  MutexLock lock(&mutex_);
  while (!done_) changed_.Wait(mutex_);
  return *end_status_;
}

void ExpandStream::OnReadDone(bool ok) {
  std::optional<Answer> answer;
  if (ok) {
    absl::StatusOr<std::optional<Answer>> taken = TakeMessage();
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
      StartRead(&incoming_);
    } else {
      StopWriting();
    }
  }
  // The next message may be read meanwhile.
  if (answer.has_value()) answer->callback(std::move(answer->response));
}

void ExpandStream::OnWriteDone(bool ok) {
  MutexLock lock(&mutex_);
  writing_ = false;
  outbox_.pop_front();
  if (!ok) StopWriting();
  PumpWrite();
  changed_.SignalAll();
}

void ExpandStream::OnDone(const grpc::Status& status) {
  std::unordered_map<uint64_t, Item> unanswered;
  absl::Status end_status;
  {
    MutexLock lock(&mutex_);
    end_status = abort_status_.ok() ? ToAbslStatus(status) : abort_status_;
    end_status_ = end_status;
    unanswered.swap(items_);
    changed_.SignalAll();
  }
  for (auto& [id, item] : unanswered) item.callback(Unanswered(end_status));
  MutexLock lock(&mutex_);
  done_ = true;
  // Before the lock is released: the stream may be gone after that.
  changed_.SignalAll();
}

absl::StatusOr<std::optional<ExpandStream::Answer>> ExpandStream::TakeMessage() {
  if (incoming_.result_case() == v1::ExpandStreamResponse::RESULT_NOT_SET) {
    return absl::InternalError("the server sent a message without a result");
  }
  const uint64_t id = incoming_.has_refusal() ? incoming_.refusal().request_id() : incoming_.expansion().request_id();
  const absl::StatusOr<Item*> item = FindItem(id);
  if (!item.ok()) return item.status();
  Answer answer;
  if (incoming_.has_refusal()) {
    answer.response = ToAbslStatus(incoming_.refusal());
  } else {
    const absl::Status appended = (*item)->chunks.Append(incoming_);
    if (!appended.ok()) return appended;
    if (!incoming_.last_chunk()) return std::nullopt;
    answer.response = (*item)->chunks.Take();
  }
  MutexLock lock(&mutex_);
  answer.callback = std::move((*item)->callback);
  items_.erase(id);
  return answer;
}

absl::StatusOr<ExpandStream::Item*> ExpandStream::FindItem(uint64_t request_id) {
  MutexLock lock(&mutex_);
  const auto item = items_.find(request_id);
  if (item != items_.end()) return &item->second;
  return absl::InternalError(
      absl::StrCat("the server sent an answer to request_id ", request_id, ", which is not in flight"));
}

void ExpandStream::Abort(const absl::Status& status) {
  {
    MutexLock lock(&mutex_);
    if (abort_status_.ok()) abort_status_ = status;
  }
  context_.TryCancel();
}

void ExpandStream::Write(v1::ExpandStreamRequest message) {
  outbox_.push_back(std::move(message));
  PumpWrite();
}

void ExpandStream::PumpWrite() {
  if (writing_ || !may_write_) return;
  if (!outbox_.empty()) {
    writing_ = true;
    StartWrite(&outbox_.front());
  } else if (closed_) {
    StartWritesDone();
    StopWriting();
  }
}

void ExpandStream::StopWriting() {
  if (!may_write_) return;
  may_write_ = false;
  RemoveHold();
}

}  // namespace nsa::metadata::client
