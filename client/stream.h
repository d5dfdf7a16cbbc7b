// Many expansions over one call at a time.
//
//   absl::StatusOr<std::unique_ptr<ExpandStream>> stream = client->OpenStream();
//   absl::Status sent = (*stream)->Send(request, [](absl::StatusOr<v1::ExpandResponse> response) { ... });
//   absl::Status ended = (*stream)->Close();
#pragma once

#include <grpcpp/alarm.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/random/random.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/chunks.h"
#include "client/mutex.h"
#include "client/request.h"
#include "client/retry.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"

namespace nsa::metadata::client {

struct StreamOptions {
  // Messages that may wait to be written; Send blocks while there are as many. 1 or more.
  int max_queued = 64;
};

// Items over an ExpandStream call, and over the next one where a call ends early. Thread-safe. Answers come as the
// server finishes them, in any order.
//
// A call ends before the stream is closed when the server drains or is gone, when the connection is too old, or when no
// item came for Limits.stream_idle_timeout. If it ends UNAVAILABLE, or CANCELLED though
// nobody here cut it, as by a server that is shut down, its items without an answer are sent again over a new call, as
// Retry says and while their timeouts last, to whichever server the channel then picks; else each gets the call's
// status. Without items to send again, the next Send begins the new call.
class ExpandStream {
 public:
  // Runs once for each item that Send took, on a thread of gRPC's, for several items at the same time. It must not
  // block, which Send and Close may, nor destroy the stream.
  using Callback = std::function<void(absl::StatusOr<v1::ExpandResponse>)>;

  // Does not block. `timeout` is what an item gets that has none of its own. Use Client::OpenStream.
  ExpandStream(std::shared_ptr<v1::MetadataService::Stub> stub, const StreamOptions& options, const Retry& retry,
               absl::Duration timeout);

  // Closes the stream. The Client may be gone by then.
  ~ExpandStream();
  ExpandStream(const ExpandStream&) = delete;
  ExpandStream& operator=(const ExpandStream&) = delete;

  // Sends `request` and, unless it answers an error, has `callback` called with the outcome: the response a unary call
  // would get, put together from its chunks, or an error as Client's (see status.h). The request's arrays may go as
  // soon as this returns. `timeout` counts from here, and again from the request's arrival at the server; both ends
  // answer DEADLINE_EXCEEDED, this one 50 ms after the server should have. An item that is sent again has what is left
  // of it. Unset: ClientOptions.timeout. Blocks while StreamOptions.max_queued messages wait to be written, which they
  // do while the server reads no further, for `timeout` at most: DEADLINE_EXCEEDED, and nothing is sent.
  // ALREADY_EXISTS: the stream has a request of this id in flight, or one whose time passed may still be answered.
  // FAILED_PRECONDITION: it is closed.
  absl::Status Send(const Request& request, Callback callback, std::optional<absl::Duration> timeout = std::nullopt);

  // Asks the server to cancel a request that is in flight; others are ignored. Best effort: if the cancel wins, the
  // request is answered CANCELLED. Does not block.
  void Cancel(uint64_t request_id);

  // Takes no more requests, and blocks until all answers are there and their callbacks have returned. At `deadline`,
  // unset: ClientOptions.timeout from now, the items without an answer get DEADLINE_EXCEEDED and the call is cut; a
  // peer that takes nothing may hold it up until its connection is given up (ClientOptions.keepalive_timeout).
  // Answers how the last call ended.
  absl::Status Close(std::optional<absl::Time> deadline = std::nullopt);

 private:
  class Call;
  struct Item {
    // Its place among the items, by which they are sent again.
    uint64_t sequence;
    std::shared_ptr<v1::ExpandStreamRequest> message;
    absl::Time deadline;
    Callback callback;
    Chunks chunks;
    // Calls that ended without its answer.
    int attempts = 0;
    bool cancel_sent = false;
    // Its callback had DEADLINE_EXCEEDED; the server's answer, if one comes, is for nobody.
    bool expired = false;
  };
  struct Answer {
    Callback callback;
    absl::StatusOr<v1::ExpandResponse> response;
  };

  // What the call under way reports. OnDone is the last of a call's.
  void OnRead(Call& call, bool ok);
  void OnWritten(Call& call, bool ok);
  void OnDone(std::unique_ptr<Call> call, const absl::Status& status);
  // The wait before a further call is over.
  void OnBackoff();
  // An item's time is over, or the alarm was set off to look for the next.
  void OnExpiry();

  // Takes in a message; an Answer if it was an item's last one.
  absl::StatusOr<std::optional<Answer>> TakeMessage(v1::ExpandStreamResponse& message);
  absl::StatusOr<std::shared_ptr<Item>> FindItem(uint64_t request_id);
  // Ends the call, or the wait for one, with `status`.
  void Abort(const absl::Status& status);

  // The call under way, or the wait for one, is over, with `status` unless this side cut it. Answers what is to be
  // reported of items, by Report, and puts those that are to be sent again into the outbox.
  std::vector<Answer> End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes `item` out of what is to be answered; true if the server can't know of it, so that it is to be forgotten.
  bool Expire(Item& item, uint64_t request_id) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Once it is closed: ends a call that can only bring answers to items whose time has passed.
  void CutIfForNobody() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Sees to it that OnExpiry comes by `when`.
  void SetExpiry(absl::Time when) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The stream may be gone after this.
  void Report(std::vector<Answer> answers);
  absl::Duration NextBackoff(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // Begins a call where there is something to write and none is under way, and the call's next write.
  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StopWriting(Call& call) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Idle() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<v1::MetadataService::Stub> stub_;
  const size_t max_queued_;
  const Retry retry_;
  const absl::Duration timeout_;

  Mutex mutex_;
  CondVar changed_;
  // In flight, by request_id. The reaction to a read alone touches chunks.
  std::unordered_map<uint64_t, std::shared_ptr<Item>> items_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_sequence_ ABSL_GUARDED_BY(mutex_) = 0;
  // While a write is under way it is the first's.
  std::deque<std::shared_ptr<const v1::ExpandStreamRequest>> outbox_ ABSL_GUARDED_BY(mutex_);
  // Under way, or nullptr. OnDone gets it to delete.
  Call* call_ ABSL_GUARDED_BY(mutex_) = nullptr;
  // Between two calls, until OnBackoff.
  bool backing_off_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<grpc::Alarm> backoff_ ABSL_GUARDED_BY(mutex_);
  // Set off for `expiry_at_`, and not run yet.
  bool expiring_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time expiry_at_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::Alarm> expiry_ ABSL_GUARDED_BY(mutex_);
  // Whether the call under way has answered an item, and the calls in a row that failed, the first after an answer or
  // before any.
  bool call_answered_ ABSL_GUARDED_BY(mutex_) = false;
  int failures_in_a_row_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::BitGen random_ ABSL_GUARDED_BY(mutex_);
  // Ends whose Report is yet to return.
  int reporting_ ABSL_GUARDED_BY(mutex_) = 0;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  // Why this side cut the call or the wait under way; OK if it didn't.
  absl::Status abort_status_ ABSL_GUARDED_BY(mutex_);
  // How the last call ended.
  absl::Status end_status_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nsa::metadata::client
