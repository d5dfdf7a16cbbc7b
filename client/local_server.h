// A server process of the program's own.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace nsa::metadata::client {

// Serves on a Unix socket in a folder of its own from Start to the destructor, which ends the process and removes the
// folder.
class LocalServer {
 public:
  // Runs `program` with `flags`, and with no NSA_METADATA_ variable of this environment, and waits until it serves.
  // UNAVAILABLE with what it last said when it ends instead; DEADLINE_EXCEEDED with that when it does neither within
  // `start_time`; NOT_FOUND when there is no such program, or no folder for temporary files.
  static absl::StatusOr<std::unique_ptr<LocalServer>> Start(const std::string& program,
                                                            const std::vector<std::string>& flags,
                                                            absl::Duration start_time = absl::Seconds(30));
  ~LocalServer();
  LocalServer(const LocalServer&) = delete;

  // The gRPC target.
  std::string target() const { return "unix:" + folder_ + "/grpc"; }

 private:
  LocalServer() = default;
  // Reads the process's log until it serves or ends; kills it where it does neither within `start_time`.
  absl::Status AwaitServing(absl::Duration start_time);
  // Reads the rest of the log, for nobody: a full pipe would hold the process up.
  void DrainLog() const;

  std::string folder_;
  pid_t process_ = -1;
  int log_ = -1;
  std::thread drain_;
};

// The server program beside this one, or where a build tree has it; empty when there is none.
std::string FindServerProgram();

}  // namespace nsa::metadata::client
