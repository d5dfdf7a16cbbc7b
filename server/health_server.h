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
  // UNAVAILABLE naming the address when it can't listen there. Says NOT_SERVING at first. Its calls count in
  // `delivered`, what becomes of its connections in `metrics`; both outlive it.
  static absl::StatusOr<std::unique_ptr<HealthServer>> Start(const Address& address, Delivered& delivered,
                                                             Metrics& metrics);
  // Ends Watch streams too.
  ~HealthServer();

  void SetServing(bool serving) { health_.SetServing(serving); }
  // With the port that was taken.
  const Address& address() const { return acceptor_->listeners().front().address(); }

 private:
  explicit HealthServer(Delivered& delivered) : health_(live_, &delivered) {}
  void Run();

  LiveCalls live_;
  HealthService health_;
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
