// grpc.health.v1 on completion queues. gRPC's own health service is made with the callback API, whose threads poll
// every connection of the process beside the queues' and hand each other the events: beside it this server took a third
// fewer calls. The health port has its own, see health_server.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_set>

#include "absl/base/thread_annotations.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/server_builder.h"
#include "grpcpp/server_context.h"
#include "server/delivered.h"
#include "server/live_calls.h"
#include "server/mutex.h"
#include "server/refusal.h"

namespace nsa::metadata::server {

// What is said of a service: SERVICE_UNKNOWN of other names than "" (the whole server) and those of the two services.
grpc::health::v1::HealthCheckResponse::ServingStatus ServingStatusOf(const std::string& name, bool serving);
// What Check says of others.
std::string NoSuchService(const std::string& name);

class WatchCall;

// Thread-safe.
class HealthService {
 public:
  using AsyncService = grpc::health::v1::Health::WithAsyncMethod_Check<
      grpc::health::v1::Health::WithAsyncMethod_Watch<grpc::health::v1::Health::Service>>;
  using ServingStatus = grpc::health::v1::HealthCheckResponse::ServingStatus;

  // Its calls count in both, which outlive them.
  HealthService(LiveCalls& live, Delivered& delivered, int64_t max_metadata_bytes)
      : live_(live), delivered_(delivered), max_metadata_bytes_(max_metadata_bytes) {}

  void Register(grpc::ServerBuilder& builder) { builder.RegisterService(&service_); }
  // Begins to take calls from `queue`.
  void AwaitCalls(grpc::ServerCompletionQueue& queue);

  // NOT_SERVING at first. Watches are told when it changes.
  void SetServing(bool serving);
  // Ends all watches UNAVAILABLE, after what they have been told, and those that come later at once. One whose caller
  // has not taken for a moment what it is being told is cancelled.
  void EndWatches();

  // For its calls.
  AsyncService& service() { return service_; }
  LiveCalls& live() { return live_; }
  // Counts what came, and leaves of `request` no more than a service's name may be long. Refuses too much metadata.
  std::optional<Refusal> Arrived(const grpc::ServerContext& call, grpc::health::v1::HealthCheckRequest* request);
  ServingStatus StatusOf(const std::string& name);
  void Add(WatchCall* watch);
  void Remove(WatchCall* watch);

 private:
  LiveCalls& live_;
  Delivered& delivered_;
  const int64_t max_metadata_bytes_;
  AsyncService service_;
  Mutex mutex_;
  bool serving_ ABSL_GUARDED_BY(mutex_) = false;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::unordered_set<WatchCall*> watches_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nsa::metadata::server
