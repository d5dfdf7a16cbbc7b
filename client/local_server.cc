#include "client/local_server.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

extern char** environ;

namespace nsa::metadata::client {
namespace {

// This environment without the server's settings: they are for another server, with another log, port or TLS.
std::vector<char*> EnvironmentWithoutSettings() {
  std::vector<char*> kept;
  for (char** variable = environ; *variable != nullptr; ++variable) {
    if (!absl::StartsWith(*variable, "NSA_METADATA_")) kept.push_back(*variable);
  }
  kept.push_back(nullptr);
  return kept;
}

// A new folder for sockets.
absl::StatusOr<std::string> MakeFolder() {
  std::error_code error;
  const std::filesystem::path parent = std::filesystem::temp_directory_path(error);
  if (error) {
    const char* const named = getenv("TMPDIR");
    return absl::NotFoundError(absl::StrCat("no folder for temporary files: TMPDIR is ",
                                            named == nullptr ? "not set" : named, ": ", error.message()));
  }
  std::string folder = parent / "nsa-metadata-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return absl::InternalError(absl::StrCat(folder, ": ", strerror(errno)));
  return folder;
}

// The end of a log, of at most so many lines.
std::string LastLines(std::string log, int lines) {
  while (!log.empty() && log.back() == '\n') log.pop_back();
  size_t begin = log.size();
  for (; lines > 0 && begin != std::string::npos && begin > 0; --lines) begin = log.rfind('\n', begin - 1);
  return begin == std::string::npos || begin == 0 ? log : log.substr(begin + 1);
}

// Waits until there is something to read, or the writer is gone; false: not by `deadline`.
bool AwaitReadable(int descriptor, absl::Time deadline) {
  pollfd awaited = {.fd = descriptor, .events = POLLIN, .revents = 0};
  int ready = 0;
  do {
    const int64_t left = absl::ToInt64Milliseconds(deadline - absl::Now());
    ready = poll(&awaited, 1, static_cast<int>(std::clamp<int64_t>(left, 0, 1'000'000)));
  } while (ready < 0 && errno == EINTR);
  return ready != 0;
}

// Starts `program` with its standard error on `*log`.
absl::Status Spawn(const std::string& program, std::vector<std::string> arguments, pid_t* process, int* log) {
  int pipe_ends[2];
  if (pipe2(pipe_ends, O_CLOEXEC) != 0) return absl::InternalError(absl::StrCat("pipe: ", strerror(errno)));
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, pipe_ends[1], STDERR_FILENO);
  arguments.insert(arguments.begin(), program);
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  std::vector<char*> environment = EnvironmentWithoutSettings();
  const int error = posix_spawn(process, program.c_str(), &actions, nullptr, pointers.data(), environment.data());
  posix_spawn_file_actions_destroy(&actions);
  close(pipe_ends[1]);
  if (error != 0) {
    close(pipe_ends[0]);
    return absl::NotFoundError(absl::StrCat(program, ": ", strerror(error)));
  }
  *log = pipe_ends[0];
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<LocalServer>> LocalServer::Start(const std::string& program,
                                                                const std::vector<std::string>& flags,
                                                                absl::Duration start_time) {
  const absl::StatusOr<std::string> folder = MakeFolder();
  if (!folder.ok()) return folder.status();
  std::unique_ptr<LocalServer> server(new LocalServer);
  server->folder_ = *folder;
  std::vector<std::string> arguments = {absl::StrCat("--listen=unix:", *folder, "/grpc"),
                                        absl::StrCat("--health_listen=unix:", *folder, "/health"),
                                        "--metrics_listen=127.0.0.1:0"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  if (absl::Status status = Spawn(program, arguments, &server->process_, &server->log_); !status.ok()) return status;
  if (absl::Status status = server->AwaitServing(start_time); !status.ok()) return status;
  server->drain_ = std::thread([log = server.get()] { log->DrainLog(); });
  return server;
}

absl::Status LocalServer::AwaitServing(absl::Duration start_time) {
  const absl::Time deadline = absl::Now() + start_time;
  constexpr int kShownLines = 5;
  constexpr size_t kMostKept = 1 << 16;
  std::string said;
  char bytes[1024];
  while (AwaitReadable(log_, deadline)) {
    const ssize_t got = read(log_, bytes, sizeof bytes);
    if (got <= 0) {
      const std::string last = LastLines(std::move(said), 1);
      if (last.empty()) return absl::UnavailableError("the server ended and said nothing");
      // Without the time and the level that begin the line.
      const size_t level = last.find(" error ");
      return absl::UnavailableError(level == std::string::npos ? last : last.substr(level + 7));
    }
    said.append(bytes, static_cast<size_t>(got));
    if (said.find(" serving: ") != std::string::npos) return absl::OkStatus();
    if (said.size() > kMostKept) said.erase(0, kMostKept / 2);
  }
  // It may not take a SIGTERM before it serves.
  kill(process_, SIGKILL);
  return absl::DeadlineExceededError(absl::StrCat("the server does not serve within ", absl::FormatDuration(start_time),
                                                  "; its log ends:\n", LastLines(std::move(said), kShownLines)));
}

void LocalServer::DrainLog() const {
  char bytes[4096];
  ssize_t got = 0;
  do {
    got = read(log_, bytes, sizeof bytes);
  } while (got > 0 || (got < 0 && errno == EINTR));
}

LocalServer::~LocalServer() {
  if (process_ > 0) {
    kill(process_, SIGTERM);
    waitpid(process_, nullptr, 0);
  }
  if (drain_.joinable()) drain_.join();
  if (log_ >= 0) close(log_);
  std::error_code ignored;
  if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
}

std::string FindServerProgram() {
  std::error_code error;
  const std::filesystem::path here = std::filesystem::read_symlink("/proc/self/exe", error).parent_path();
  for (const std::filesystem::path& place : {here, here.parent_path() / "server"}) {
    if (std::filesystem::exists(place / "nsa-metadata-server", error)) return place / "nsa-metadata-server";
  }
  return "";
}

}  // namespace nsa::metadata::client
