#include "server/run.h"

#include <google/protobuf/stubs/logging.h>
#include <grpc/support/log.h>
#include <malloc.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_join.h"
#include "absl/synchronization/mutex.h"
#include "server/log.h"
#include "server/stop_signals.h"
#include "spdlog/spdlog.h"

namespace nsa::metadata::server {
namespace {

// What gRPC says of strangers' bytes holds them as they are, and is as much as they like.
void LogForGrpc(gpr_log_func_args* line) {
  static LogLimit limit(10);
  int64_t suppressed = 0;
  if (!limit.Allow(&suppressed)) return;
  spdlog::log(line->severity == GPR_LOG_SEVERITY_ERROR ? spdlog::level::err : spdlog::level::info, "gRPC: {}",
              absl::CHexEscape(line->message));
}

// Protobuf says of each string that is no UTF-8 which field it is.
void LogForProtobuf(google::protobuf::LogLevel, const char*, int, const std::string& message) {
  static LogLimit limit(10);
  int64_t suppressed = 0;
  if (limit.Allow(&suppressed)) spdlog::info("protobuf: {}", absl::CHexEscape(message));
}

// Each connection takes a descriptor.
void RaiseDescriptorLimit() {
  rlimit limit = {};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

// gRPC's and the HTTP server's own ends may take seconds, and nothing is left to be done.
[[noreturn]] void Exit(int code) {
  spdlog::shutdown();
  std::quick_exit(code);
}

// glibc makes eight arenas a core, and what is free in each grows to its own highs: 53 MiB on 16 cores, for 15 in use,
// and 3.6 MiB more with each doubling of the calls; two arenas had 16. With eight there are no fewer calls a second.
void BoundArenas() {
#ifdef __GLIBC__
  // Who sets one of these knows why.
  if (getenv("MALLOC_ARENA_MAX") == nullptr && getenv("GLIBC_TUNABLES") == nullptr) mallopt(M_ARENA_MAX, 8);
#endif
}

}  // namespace

void ServeAndExit(const Options& options, Surroundings surroundings) {
  BoundArenas();
  // Debian's abseil is built with its detector of lock cycles: a graph behind one lock, which every lock that gRPC
  // takes goes through. It is a sixth of the instructions of a call.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  SetUpLog(options.log_format);
  gpr_set_log_function(&LogForGrpc);
  google::protobuf::SetLogHandler(&LogForProtobuf);
  const sigset_t signals = BlockStopSignals();
  RaiseDescriptorLimit();
  // Comes back from sigwait, like one from outside.
  surroundings.end = [] { kill(getpid(), SIGTERM); };
  const auto server = Server::Start(options, std::move(surroundings));
  if (!server.ok()) {
    spdlog::error("{}", std::string(server.status().message()));
    Exit(EXIT_FAILURE);
  }
  spdlog::info("serving: grpc={} health={} metrics={}", absl::StrJoin((*server)->listen_addresses(), ","),
               (*server)->health_address(), (*server)->metrics_address());
  int signal = 0;
  sigwait(&signals, &signal);
  spdlog::info("signal {}", signal);
  (*server)->Drain();
  Exit((*server)->device_lost() && options.on_gpu_fault == "exit" ? EXIT_FAILURE : EXIT_SUCCESS);
}

}  // namespace nsa::metadata::server
