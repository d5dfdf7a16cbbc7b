// The whole server: what listens, what computes, what is measured, and the order in which they start and stop.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "server/failpoints.h"
#include "server/options.h"

namespace nsa::metadata::server {

// What surrounds a server. All of it may be left out.
struct Surroundings {
  // Computes, instead of what the options name.
  std::unique_ptr<kernels::Backend> backend;
  // Outlives the server.
  Failpoints* failpoints = nullptr;
  // The device has failed, and on_gpu_fault says that the server is to be drained and the process to end. Called once,
  // by a thread that answers calls and must not wait for that.
  std::function<void()> end;
};

// Serves from Start to Drain or destruction.
class Server {
 public:
  // Validates `options`, takes the ports, makes everything that serving needs. INVALID_ARGUMENT, UNAVAILABLE (a port)
  // or RESOURCE_EXHAUSTED (memory), each saying what and why.
  static absl::StatusOr<std::unique_ptr<Server>> Start(const Options& options, Surroundings surroundings = {});
  ~Server();

  // Readiness off; serves on for lame_duck; takes no new connections, tells callers to go elsewhere (GOAWAY) and
  // answers what is in flight for up to drain_timeout, then cuts the rest. Each step is logged. Blocks. Idempotent.
  void Drain();

  // Addresses with the ports that were taken, as gRPC targets.
  std::vector<std::string> listen_addresses() const;
  std::string health_address() const;
  std::string metrics_address() const;

  const Options& options() const;
  int64_t live_calls() const;
  size_t output_blocks_in_use() const;
  // Whether the device has failed, and the CPU computes instead.
  bool device_lost() const;

 private:
  struct Parts;
  explicit Server(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace nsa::metadata::server
