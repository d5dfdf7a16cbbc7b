// The life of an ExpandStream call: items in, answers out as they finish.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "grpcpp/alarm.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/async_stream.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/call_queue.h"
#include "server/clock.h"
#include "server/completion_queue.h"
#include "server/mutex.h"
#include "server/refusal.h"
#include "server/service.h"
#include "server/task.h"

namespace nsa::metadata::server {

// Reads one message at a time, and the next one only below max_stream_inflight items, once the last one was admitted,
// and while there is room for the lengths of another: over a limit it waits. Writes one at a time, so that an answer's
// chunks may have others' between them. Ends when the caller sends no more and all is answered, when the server drains
// and all that was read is answered, or when the caller is gone; deletes itself once no operation of gRPC's and no item
// of its own is under way.
class StreamCall {
 public:
  // Begins to take ExpandStream calls from `queue`, one at a time.
  static void Await(CallContext& context, CallQueue& queue) { new StreamCall(context, queue); }

  // Answers what was read, reads no more, and ends UNAVAILABLE. Any thread.
  void Drain() ABSL_LOCKS_EXCLUDED(mutex_);
  // Ends it when no item has come for stream_idle_timeout and none is in flight; cancels it when a message has waited
  // for its reader for write_stall_timeout or, if `crowded`, an answer has since it was ready. Any thread.
  void Look(TimePoint now, bool crowded) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // How long what found no room waits before it asks again; each time twice as long.
  static constexpr std::chrono::milliseconds kRetryFirst{2};
  static constexpr std::chrono::milliseconds kRetryMost{32};

  // A message that is read so soon after another one was read or written was likely there already, and so may be more.
  static constexpr std::chrono::microseconds kBackToBack{5};

  // An item from its reading to its answer.
  class Item final : public Responder {
   public:
    Item(StreamCall& call, uint64_t id) : call_(call), id_(id), arrived_(Clock::now()) {}
    bool cancelled() const override { return cancelled_ || call_.caller_gone_; }
    void Reply(Messages reply, const Journey& journey) override {
      call_.Answer(*this, std::move(reply), std::nullopt, journey);
    }
    void Refuse(const Refusal& refusal) override { call_.Refuse(*this, refusal); }
    void Cancel() { cancelled_ = true; }
    uint64_t id() const { return id_; }
    TimePoint arrived() const { return arrived_; }

   private:
    StreamCall& call_;
    const uint64_t id_;
    const TimePoint arrived_;
    std::atomic<bool> cancelled_{false};
  };
  struct Outgoing {
    ReplyMessage message;
    TimePoint item_arrived;
    TimePoint answered;
    bool last;   // of its item's
    bool whole;  // its item's only one
    // Of a last one: why its item was refused, or how it was computed.
    std::optional<v1::RefusalReason> refused;
    std::optional<Journey> journey;
    // The id that the caller may use again once this is written.
    std::optional<uint64_t> frees_id;
  };

  // An item whose last message was written, or will not be.
  struct Answered {
    std::optional<v1::RefusalReason> refused;
    std::optional<Journey> journey;
    uint64_t total_ns;
    uint64_t send_ns;
  };

  StreamCall(CallContext& context, CallQueue& queue);
  ~StreamCall() = default;

  void OnArrived(bool ok);
  void OnRead(bool ok);
  void OnRetry(bool ok);
  void OnWritten(bool ok);
  void OnFinished(bool ok);
  void OnDone(bool ok);

  void Take(const grpc::ByteBuffer& message);
  void TakeExpand(std::unique_ptr<Task> task, v1::ExpandStreamRequest& message);
  void Cancel(uint64_t id);
  // Null once the task is admitted or refused; else the task, for which there is no room yet.
  std::unique_ptr<Task> TryAdmit(std::unique_ptr<Task> task);
  // Keeps it, and tries again soon. Null: there is none, but no room for the lengths of another either.
  void AwaitRoom(std::unique_ptr<Task> task) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SetDeadline(const v1::ExpandStreamRequest& message, Task& task) const;

  void Answer(Item& item, Messages messages, std::optional<v1::RefusalReason> refused,
              const std::optional<Journey>& journey) ABSL_LOCKS_EXCLUDED(mutex_);
  void Refuse(Item& item, const Refusal& refusal);
  // Refuses what never became an item in flight.
  void RefuseMessage(uint64_t id, const Refusal& refusal);
  static ReplyMessage Encode(uint64_t id, const Refusal& refusal);

  // Each starts what may be started now.
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PumpRead() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PumpWrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void PumpFinish() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Whether as much waits for its caller to be read as may.
  bool IsFull() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Tells whether the stream is read no further for now.
  void NoteWait() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void* StartOperation(CompletionTag* tag) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // May write to a log that nobody reads.
  void Note(const Answered& answered) ABSL_LOCKS_EXCLUDED(mutex_);
  // An operation or item has ended; may delete the call.
  void EndOperation() ABSL_LOCKS_EXCLUDED(mutex_);

  LiveCalls::Place place_;
  CallContext& context_;
  CallQueue& queue_;
  grpc::ServerContext server_context_;
  AsyncService::Stream stream_{&server_context_};
  MemberTag<StreamCall> arrived_tag_{this, &StreamCall::OnArrived};
  MemberTag<StreamCall> read_tag_{this, &StreamCall::OnRead};
  MemberTag<StreamCall> retry_tag_{this, &StreamCall::OnRetry};
  MemberTag<StreamCall> written_tag_{this, &StreamCall::OnWritten};
  MemberTag<StreamCall> finished_tag_{this, &StreamCall::OnFinished};
  MemberTag<StreamCall> done_tag_{this, &StreamCall::OnDone};
  TimePoint arrived_;
  Caller caller_;
  std::atomic<bool> caller_gone_{false};

  // Of the reaction to a read, or to a retry: there is one of them at a time.
  grpc::ByteBuffer incoming_;
  std::unique_ptr<Task> waiting_task_;
  grpc::Alarm retry_;
  std::chrono::milliseconds retry_after_ = kRetryFirst;

  Mutex mutex_;
  // By id, until they have their answer.
  std::unordered_map<uint64_t, std::unique_ptr<Item>> items_ ABSL_GUARDED_BY(mutex_);
  // The ids in flight: until the last of the answer is on its way, since the caller may use the id again when it has
  // that.
  std::unordered_set<uint64_t> ids_ ABSL_GUARDED_BY(mutex_);
  std::deque<Outgoing> outbox_ ABSL_GUARDED_BY(mutex_);
  std::vector<Answered> unwritten_ ABSL_GUARDED_BY(mutex_);  // answers that nobody is there to read, to be noted
  // Items read whose last answer is not written yet.
  int64_t unanswered_ ABSL_GUARDED_BY(mutex_) = 0;
  int64_t refusals_ ABSL_GUARDED_BY(mutex_) = 0;  // in the outbox
  int operations_ ABSL_GUARDED_BY(mutex_) = 1;    // the call itself, until OnDone
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;
  bool taking_ ABSL_GUARDED_BY(mutex_) = false;       // what was read
  bool awaits_room_ ABSL_GUARDED_BY(mutex_) = false;  // a retry is to come
  bool waits_ ABSL_GUARDED_BY(mutex_) = false;        // as was told
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
  bool reads_done_ ABSL_GUARDED_BY(mutex_) = false;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  TimePoint write_started_ ABSL_GUARDED_BY(mutex_);
  uint64_t item_send_ns_ ABSL_GUARDED_BY(mutex_) = 0;  // of the answer under way, so far
  // When the last message was read or written.
  TimePoint last_message_ ABSL_GUARDED_BY(mutex_);
  bool back_to_back_ ABSL_GUARDED_BY(mutex_) = false;                     // the last one that was read
  std::optional<Refusal> refusal_ ABSL_GUARDED_BY(mutex_);                // of the call as a whole
  grpc::StatusCode code_ ABSL_GUARDED_BY(mutex_) = grpc::StatusCode::OK;  // that it was finished with
};

}  // namespace nsa::metadata::server
