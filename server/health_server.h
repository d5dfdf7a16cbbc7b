// grpc.health.v1 on a port of its own, so that no load on the service fails a probe.
#pragma once

#include <memory>
#include <thread>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "server/acceptor.h"
#include "server/address.h"
#include "server/delivered.h"
#include "server/health_service.h"
#include "server/live_calls.h"
#include "server/metrics.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

// Not thread-safe.
class HealthServer {
 public:
  // Probes come now and then, each on a connection or several on one that is kept; the next one more ends the oldest,
  // so that who opens many keeps no probe from being answered, and takes no descriptors from the callers.
  static constexpr size_t kMostConnections = 256;

  // UNAVAILABLE naming the address when it can't listen there. Says NOT_SERVING at first. Both outlive it.
  static absl::StatusOr<std::unique_ptr<HealthServer>> Start(const Address& address, const Delivered& delivered,
                                                             Metrics& metrics);
  // Ends Watch streams too.
  ~HealthServer();

  void SetServing(bool serving) { health_.SetServing(serving); }
  // With the port that was taken.
  const Address& address() const { return acceptor_->listeners().front().address(); }

 private:
  HealthServer() = default;
  void Run();

  LiveCalls live_;
  HealthService health_{live_};
  std::unique_ptr<grpc::ServerCompletionQueue> queue_;
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> connections_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Acceptor> acceptor_;
  std::thread thread_;
  Mutex mutex_;
  CondVar stopped_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace nsa::metadata::server
