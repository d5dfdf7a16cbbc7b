#include "client/local_server.h"

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"

extern char** environ;

namespace nsa::metadata::client {
namespace {

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
  const int error = posix_spawn(process, program.c_str(), &actions, nullptr, pointers.data(), environ);
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
                                                                const std::vector<std::string>& flags) {
  std::unique_ptr<LocalServer> server(new LocalServer);
  std::string folder = std::filesystem::temp_directory_path() / "nsa-metadata-XXXXXX";
  if (mkdtemp(folder.data()) == nullptr) return absl::InternalError(absl::StrCat(folder, ": ", strerror(errno)));
  server->folder_ = folder;
  std::vector<std::string> arguments = {absl::StrCat("--listen=unix:", folder, "/grpc"),
                                        absl::StrCat("--health_listen=unix:", folder, "/health"),
                                        "--metrics_listen=127.0.0.1:0"};
  arguments.insert(arguments.end(), flags.begin(), flags.end());
  if (absl::Status status = Spawn(program, arguments, &server->process_, &server->log_); !status.ok()) return status;
  if (absl::Status status = server->AwaitServing(); !status.ok()) return status;
  return server;
}

absl::Status LocalServer::AwaitServing() {
  std::string said;
  char bytes[1024];
  for (ssize_t got; (got = read(log_, bytes, sizeof bytes)) > 0;) {
    said.append(bytes, got);
    if (said.find(" serving: ") != std::string::npos) return absl::OkStatus();
  }
  // The last line, without the time and the level that begin it.
  while (!said.empty() && said.back() == '\n') said.pop_back();
  said.erase(0, said.rfind('\n') + 1);
  const size_t level = said.find(" error ");
  return absl::UnavailableError(level == std::string::npos ? said : said.substr(level + 7));
}

LocalServer::~LocalServer() {
  if (process_ > 0) {
    kill(process_, SIGTERM);
    waitpid(process_, nullptr, 0);
  }
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
