// A server for the client's tests, on a port of its own choosing.
#pragma once

#include <grpcpp/server.h>
#include <grpcpp/support/sync_stream.h>

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/request.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"

namespace nsa::metadata::client {

// The status that the service answers a refusal with: the code, and google.rpc details that say why.
grpc::Status Refusal(grpc::StatusCode code, const std::string& reason, const std::string& field, int64_t value,
                     int64_t limit, int64_t retry_after_seconds = 0);

// What ExpandStream writes to and reads from.
using FakeStream = grpc::ServerReaderWriter<v1::ExpandStreamResponse, v1::ExpandStreamRequest>;

// The client's own answer to `request`.
v1::ExpandResponse ReferenceOf(const v1::ExpandRequest& request);

// `whole` as the messages of a stream, `tokens` in a chunk; 0: in one piece.
std::vector<v1::ExpandStreamResponse> ChunksOf(const v1::ExpandResponse& whole, int64_t tokens);

// A refusal on a stream.
v1::ExpandStreamResponse StreamedRefusal(uint64_t request_id, grpc::StatusCode code, v1::RefusalReason reason);

// The next message, which has to be there.
v1::ExpandStreamRequest ReadFrom(FakeStream& stream);
void WriteTo(FakeStream& stream, const std::vector<v1::ExpandStreamResponse>& messages);

// Answers Expand with `expand`, or, without one, with the client's own reference. Answers ExpandStream with `stream`,
// or, without one, each item as Expand would, in one piece and in order. Thread-safe.
class FakeServer final : public v1::MetadataService::Service {
 public:
  using ExpandFunction = std::function<grpc::Status(const v1::ExpandRequest&, v1::ExpandResponse&)>;
  using StreamFunction = std::function<grpc::Status(FakeStream&)>;

  explicit FakeServer(ExpandFunction expand = nullptr, StreamFunction stream = nullptr);
  ~FakeServer() override;

  // "127.0.0.1:port".
  const std::string& target() const { return target_; }
  // Sets what health checks answer; it is SERVING from the start.
  void SetServing(bool serving) { server_->GetHealthCheckService()->SetServingStatus(serving); }
  // Calls of Expand and of ExpandStream so far, and the number of connections they came on.
  int calls();
  int streams();
  size_t connections();

 private:
  grpc::Status Expand(grpc::ServerContext* context, const v1::ExpandRequest* request,
                      v1::ExpandResponse* response) override;
  grpc::Status ExpandStream(grpc::ServerContext* context, FakeStream* stream) override;
  grpc::Status GetServerInfo(grpc::ServerContext* context, const v1::GetServerInfoRequest* request,
                             v1::GetServerInfoResponse* response) override;

  grpc::Status Answer(const v1::ExpandRequest& request, v1::ExpandResponse& response) const;

  const ExpandFunction expand_;
  const StreamFunction stream_;
  absl::Mutex mutex_;
  int calls_ ABSL_GUARDED_BY(mutex_) = 0;
  int streams_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<std::string> peers_ ABSL_GUARDED_BY(mutex_);
  std::string target_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace nsa::metadata::client
