// nsa-metadata: the service from the command line.
#include "absl/synchronization/mutex.h"
#include "client/command_bench.h"
#include "client/command_check.h"
#include "client/command_doctor.h"
#include "client/command_expand.h"
#include "client/command_health.h"
#include "client/command_replay.h"
#include "client/failure.h"

int main(int argc, char** argv) {
  // As the server, see server/main.cc.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  namespace client = nsa::metadata::client;
  CLI::App program(
      "Calls an NSA metadata server.\n"
      "Exit codes: 0 ok, 1 wrong bytes, 2 usage, 3 unreachable, 4 refused, 5 deadline.");
  program.require_subcommand(1);
  int exit_code = client::kOk;
  client::AddExpandCommand(program, exit_code);
  client::AddReplayCommand(program, exit_code);
  client::AddBenchCommand(program, exit_code);
  client::AddHealthCommand(program, exit_code);
  client::AddDoctorCommand(program, exit_code);
  client::AddCheckCommand(program, exit_code);
  try {
    program.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return program.exit(error) == 0 ? client::kOk : client::kUsage;
  }
  return exit_code;
}
