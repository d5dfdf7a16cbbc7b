// A server for the client's tests, on a port of its own choosing.
#pragma once

#include <grpcpp/server.h>

#include <functional>
#include <memory>
#include <set>
#include <string>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "client/request.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"

namespace nsa::metadata::client {

// The status that the service answers a refusal with: the code, and google.rpc details that say why.
grpc::Status Refusal(grpc::StatusCode code, const std::string& reason, const std::string& field, int64_t value,
                     int64_t limit, int64_t retry_after_seconds = 0);

// Answers Expand with `expand`, or, without one, with the client's own reference. Thread-safe.
class FakeServer final : public v1::MetadataService::Service {
 public:
  using ExpandFunction = std::function<grpc::Status(const v1::ExpandRequest&, v1::ExpandResponse&)>;

  explicit FakeServer(ExpandFunction expand = nullptr);
  ~FakeServer() override;

  // "127.0.0.1:port".
  const std::string& target() const { return target_; }
  // Sets what health checks answer; it is SERVING from the start.
  void SetServing(bool serving) { server_->GetHealthCheckService()->SetServingStatus(serving); }
  // Calls of Expand so far, and the number of connections they came on.
  int calls();
  size_t connections();

 private:
  grpc::Status Expand(grpc::ServerContext* context, const v1::ExpandRequest* request,
                      v1::ExpandResponse* response) override;
  grpc::Status GetServerInfo(grpc::ServerContext* context, const v1::GetServerInfoRequest* request,
                             v1::GetServerInfoResponse* response) override;

  const ExpandFunction expand_;
  absl::Mutex mutex_;
  int calls_ ABSL_GUARDED_BY(mutex_) = 0;
  std::set<std::string> peers_ ABSL_GUARDED_BY(mutex_);
  std::string target_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace nsa::metadata::client
