// The client of the NSA metadata service.
//
//   auto client = Client::Connect("127.0.0.1:50051");
//   Request request(v1::SEQUENCE_MODE_CAUSAL);
//   request.extend_seq_lens = extend_seq_lens;
//   request.seq_lens = seq_lens;
//   request.nsa_index_topk = 2048;
//   absl::StatusOr<v1::ExpandResponse> reply = (*client)->Expand(request);
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/security/credentials.h>
#include <grpcpp/support/channel_arguments.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "client/deadlines.h"
#include "client/request.h"
#include "client/retry.h"
#include "client/stream.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"

namespace nsa::metadata::client {

struct ClientOptions {
  // A call's time, all attempts together. 0: no deadline of the client's; the server still has its own.
  absl::Duration timeout = absl::Seconds(30);
  Retry retry = {};
  // Connections that calls take in turn, 1 to 1,024. More than one helps where a connection is the bottleneck.
  int channels = 1;
  // The largest reply accepted, bytes. 1 or more.
  int max_receive_message_bytes = 4 << 20;
  // nullptr: plain text. See TlsCredentials.
  std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;
  // The name that the server's certificate has to have; empty: the target's.
  std::string server_name = {};
  // While calls are in flight, a connection on which nothing has come for keepalive_time is asked for a sign of life;
  // without one within keepalive_timeout its calls end UNAVAILABLE. 10 s or more, as the server allows; 1 ms or more.
  absl::Duration keepalive_time = absl::Seconds(30);
  absl::Duration keepalive_timeout = absl::Seconds(10);
};

// What a channel is given that calls as `options` say: retries, balancing over a target's addresses, limits.
grpc::ChannelArguments ChannelArgumentsOf(const ClientOptions& options);

// Calls a server. Thread-safe. Errors carry the server's code, message and details: see status.h. UNAVAILABLE without a
// Violation means that the server wasn't reached.
class Client {
 public:
  // Runs once on a thread of gRPC's. It must not block, nor destroy the Client.
  using Callback = std::function<void(absl::StatusOr<v1::ExpandResponse>)>;

  // Does not block: connections are made by the first calls. `target` is a gRPC name, as "host:port",
  // "dns:///host:port" or "unix:/path"; calls go round the addresses it resolves to. INVALID_ARGUMENT names the option
  // that is out of range.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const std::string& target, ClientOptions options = {});

  // Blocks until the callbacks of all asynchronous calls have returned.
  ~Client();
  Client(const Client&) = delete;
  Client& operator=(const Client&) = delete;

  // Expands `request`. Blocks until the answer or the deadline; `deadline` goes before ClientOptions.timeout.
  absl::StatusOr<v1::ExpandResponse> Expand(const Request& request, std::optional<absl::Time> deadline = std::nullopt);

  // The same without blocking. The request's arrays may go as soon as this returns; `callback` may run before it does.
  void ExpandAsync(const Request& request, Callback callback, std::optional<absl::Time> deadline = std::nullopt);

  // A stream of many requests over one of the connections, in turn. Does not block: that the server isn't there shows
  // in the items' outcomes. The stream may outlive the Client. INVALID_ARGUMENT names the option that is out of range.
  absl::StatusOr<std::unique_ptr<ExpandStream>> OpenStream(const StreamOptions& options = {});

  // Asks what the server is and accepts. Blocks until the answer or the deadline.
  absl::StatusOr<v1::GetServerInfoResponse> ServerInfo(std::optional<absl::Time> deadline = std::nullopt);

 private:
  Client(const std::string& target, const ClientOptions& options);

  const std::shared_ptr<v1::MetadataService::Stub>& NextStub();
  // Calls `method` of a stub's, and has `callback` called with the outcome, Deadlines::kGrace after the deadline
  // at the latest.
  template <typename ResponseMessage, typename RequestMessage, typename Method>
  void Call(RequestMessage request, std::optional<absl::Time> deadline, const Method& method,
            std::function<void(absl::StatusOr<ResponseMessage>)> callback);
  // A callback has returned.
  void Answered();

  const absl::Duration timeout_;
  const Retry retry_;
  std::vector<std::shared_ptr<v1::MetadataService::Stub>> stubs_;
  std::atomic<size_t> next_stub_ = 0;
  absl::Mutex mutex_;
  int64_t unanswered_ ABSL_GUARDED_BY(mutex_) = 0;
  const std::shared_ptr<Deadlines> deadlines_ = std::make_shared<Deadlines>();
};

}  // namespace nsa::metadata::client
