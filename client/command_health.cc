#include "client/command_health.h"

#include <cstdio>
#include <memory>

#include "client/failure.h"
#include "client/flags.h"
#include "client/health.h"
#include "client/json.h"

namespace nsa::metadata::client {
namespace {

struct Flags {
  // The server answers health apart from requests, so that load never fails a probe.
  CommonFlags common = {.target = "127.0.0.1:50052", .timeout = absl::Seconds(5)};
  std::string service;
};

ExitCode RunHealth(const Flags& flags) {
  ClientOptions options = {.timeout = flags.common.timeout};
  if (const absl::Status wrong = SetConnection(flags.common, options); !wrong.ok()) return PrintUsageError(wrong);
  const absl::StatusOr<ServingStatus> status = CheckHealth(flags.common.target, flags.service, options);
  if (!status.ok()) {
    PrintFailure(status.status(), flags.common.json);
    return ExitCodeOf(status.status());
  }
  const std::string name = ServingStatusName(*status);
  std::puts(flags.common.json ? JsonObject().Add("status", name).str().c_str() : name.c_str());
  // It answers, but takes no requests: to a caller it is as good as gone.
  return *status == ServingStatus::kServing ? kOk : kUnreachable;
}

}  // namespace

void AddHealthCommand(CLI::App& program, int& exit_code) {
  const auto flags = std::make_shared<Flags>();
  CLI::App& command = *program.add_subcommand("health", "Ask whether a server takes requests");
  AddCommonFlags(command, flags->common);
  command.add_option("--service", flags->service, "The service to ask for; empty: the server as a whole");
  command.callback([flags, &exit_code] { exit_code = RunHealth(*flags); });
}

}  // namespace nsa::metadata::client
