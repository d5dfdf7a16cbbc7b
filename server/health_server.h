// grpc.health.v1 on a port of its own, so that no load on the service fails a probe.
#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "server/acceptor.h"
#include "server/address.h"
#include "server/clock.h"
#include "server/health_connection.h"
#include "server/metrics.h"

namespace nsa::metadata::server {

// Not gRPC's: a process's gRPC servers poll all their connections together, and a probe would wait for the events of
// whoever loads the service. One thread, which waits for nobody. Not thread-safe.
class HealthServer {
 public:
  // UNAVAILABLE naming the address when it can't listen there. Says NOT_SERVING at first. What becomes of its
  // connections counts in `metrics`, which outlive it.
  static absl::StatusOr<std::unique_ptr<HealthServer>> Start(const Address& address, Metrics& metrics);
  // Hangs up.
  ~HealthServer();

  void SetServing(bool serving);
  // With the port that was taken.
  const Address& address() const { return listener_.address(); }

 private:
  HealthServer(Listener listener, Metrics& metrics);
  // Waits for what is to be done, and does it.
  void Turn();
  void Accept();
  void EndOldest();

  Listener listener_;
  Metrics& metrics_;
  std::atomic<bool> serving_{false};
  std::atomic<bool> stopping_{false};
  Descriptor wake_;
  // The thread's own.
  bool told_ = false;                                           // what those who ask are told
  std::vector<std::unique_ptr<HealthConnection>> connections_;  // the oldest first
  TimePoint accept_after_ = {};
  std::thread thread_;
};

}  // namespace nsa::metadata::server
