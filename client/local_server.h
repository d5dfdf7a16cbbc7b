// A server process of the program's own.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace nsa::metadata::client {

// Serves on a Unix socket in a folder of its own from Start to the destructor, which ends the process and removes the
// folder.
class LocalServer {
 public:
  // Runs `program` with `flags` and waits until it serves. UNAVAILABLE with what it last said when it ends instead;
  // NOT_FOUND when there is no such program.
  static absl::StatusOr<std::unique_ptr<LocalServer>> Start(const std::string& program,
                                                            const std::vector<std::string>& flags);
  ~LocalServer();
  LocalServer(const LocalServer&) = delete;

  // The gRPC target.
  std::string target() const { return "unix:" + folder_ + "/grpc"; }

 private:
  LocalServer() = default;
  // Reads the process's log until it serves or ends.
  absl::Status AwaitServing();

  std::string folder_;
  pid_t process_ = -1;
  int log_ = -1;
};

// The server program beside this one, or where a build tree has it; empty when there is none.
std::string FindServerProgram();

}  // namespace nsa::metadata::client
