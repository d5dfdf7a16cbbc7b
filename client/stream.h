// Many expansions over one call.
//
//   absl::StatusOr<std::unique_ptr<ExpandStream>> stream = client->OpenStream();
//   absl::Status sent = (*stream)->Send(request, [](absl::StatusOr<v1::ExpandResponse> response) { ... });
//   absl::Status ended = (*stream)->Close();
#pragma once

#include <grpcpp/client_context.h>
#include <grpcpp/support/client_callback.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/chunks.h"
#include "client/mutex.h"
#include "client/request.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"

namespace nsa::metadata::client {

struct StreamOptions {
  // Messages that may wait to be written; Send blocks while there are as many. 1 or more.
  int max_queued = 64;
};

// One ExpandStream call. Thread-safe. Answers come as the server finishes them, in any order.
//
// The call may end before it is closed: the server drains or is gone, the connection is too old, or the stream was idle
// for longer than Limits.stream_idle_timeout. Every item without an answer then gets the call's status, and so does
// every further Send. An expansion changes nothing, so these items may be sent again over another stream.
class ExpandStream final : private grpc::ClientBidiReactor<v1::ExpandStreamRequest, v1::ExpandStreamResponse> {
 public:
  // Runs once for each item that Send took, on a thread of gRPC's, for several items at the same time. It must not
  // block, which Send and Close may, nor destroy the stream.
  using Callback = std::function<void(absl::StatusOr<v1::ExpandResponse>)>;

  // Begins the call, without blocking. `timeout` is what an item gets that has none of its own. Use Client::OpenStream.
  ExpandStream(v1::MetadataService::Stub& stub, const StreamOptions& options, absl::Duration timeout);

  // Closes the stream. The Client may be gone by then.
  ~ExpandStream() override;
  ExpandStream(const ExpandStream&) = delete;
  ExpandStream& operator=(const ExpandStream&) = delete;

  // Sends `request` and, unless it answers an error, has `callback` called with the outcome: the response a unary call
  // would get, put together from its chunks, or an error as Client's (see status.h). The request's arrays may go as
  // soon as this returns. `timeout` counts from the request's arrival at the server, which answers DEADLINE_EXCEEDED;
  // unset: ClientOptions.timeout. Blocks while StreamOptions.max_queued messages wait to be written, which they do
  // while the server reads no further. ALREADY_EXISTS: the stream has a request of this id in flight.
  // FAILED_PRECONDITION: it is closed. Another error: the call has ended with it.
  absl::Status Send(const Request& request, Callback callback, std::optional<absl::Duration> timeout = std::nullopt);

  // Asks the server to cancel a request that is in flight; others are ignored. Best effort: if the cancel wins, the
  // request is answered CANCELLED. Does not block.
  void Cancel(uint64_t request_id);

  // Takes no more requests, and blocks until all answers are there and their callbacks have returned. At `deadline`,
  // unset: ClientOptions.timeout from now, the items without an answer get DEADLINE_EXCEEDED and the call is cut.
  // Answers how the call ended.
  absl::Status Close(std::optional<absl::Time> deadline = std::nullopt);

 private:
  struct Item {
    Callback callback;
    Chunks chunks;
    bool cancel_sent = false;
  };
  struct Answer {
    Callback callback;
    absl::StatusOr<v1::ExpandResponse> response;
  };

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  // Takes in `incoming_`; an Answer if it was an item's last message.
  absl::StatusOr<std::optional<Answer>> TakeMessage();
  absl::StatusOr<Item*> FindItem(uint64_t request_id);
  // Ends the call with `status`.
  void Abort(const absl::Status& status);

  void Write(v1::ExpandStreamRequest message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Starts the next write, or says that there will be none.
  void PumpWrite() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void StopWriting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const size_t max_queued_;
  const absl::Duration timeout_;
  grpc::ClientContext context_;
  // Of the read under way, or of the reaction to it.
  v1::ExpandStreamResponse incoming_;

  Mutex mutex_;
  CondVar changed_;
  // In flight, by request_id. The reaction to a read alone touches chunks, and removes items before the call's end.
  std::unordered_map<uint64_t, Item> items_ ABSL_GUARDED_BY(mutex_);
  // The first is being written.
  std::deque<v1::ExpandStreamRequest> outbox_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  // While it is set, the reactor has a hold, so that writes may start outside of reactions.
  bool may_write_ ABSL_GUARDED_BY(mutex_) = true;
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;
  // Why this side cut the call; OK if it didn't.
  absl::Status abort_status_ ABSL_GUARDED_BY(mutex_);
  // How the call ended; nothing until then.
  std::optional<absl::Status> end_status_ ABSL_GUARDED_BY(mutex_);
  // Whether the last callback has returned.
  bool done_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nsa::metadata::client
