// grpc.health.v1 on completion queues. gRPC's own health service is made with the callback API, whose threads poll
// every connection of the process beside the queues' and hand each other the events: beside it this server took a third
// fewer calls.
#pragma once

#include <unordered_set>

#include "absl/base/thread_annotations.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/server_context.h"
#include "server/delivered.h"
#include "server/live_calls.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

class WatchCall;

// Answers for "" (the whole server) and the names of the two services. Thread-safe.
class HealthService {
 public:
  using AsyncService = grpc::health::v1::Health::WithAsyncMethod_Check<
      grpc::health::v1::Health::WithAsyncMethod_Watch<grpc::health::v1::Health::Service>>;
  using ServingStatus = grpc::health::v1::HealthCheckResponse::ServingStatus;

  // Its calls count in `live`, and in `delivered` if there is one; both outlive them.
  explicit HealthService(LiveCalls& live, Delivered* delivered = nullptr) : live_(live), delivered_(delivered) {}

  void Register(grpc::ServerBuilder& builder) { builder.RegisterService(&service_); }
  // Begins to take calls from `queue`.
  void AwaitCalls(grpc::ServerCompletionQueue& queue);

  // NOT_SERVING at first. Watches are told when it changes.
  void SetServing(bool serving);
  // Ends all watches UNAVAILABLE, after what they have been told, and those that come later at once.
  void EndWatches();

  // For its calls.
  AsyncService& service() { return service_; }
  LiveCalls& live() { return live_; }
  void Arrived(const grpc::ServerContext& call);
  // SERVICE_UNKNOWN for other names.
  ServingStatus StatusOf(const std::string& name);
  void Add(WatchCall* watch);
  void Remove(WatchCall* watch);

 private:
  ServingStatus StatusLocked(const std::string& name) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  LiveCalls& live_;
  Delivered* const delivered_;
  AsyncService service_;
  Mutex mutex_;
  bool serving_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::unordered_set<WatchCall*> watches_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nsa::metadata::server
