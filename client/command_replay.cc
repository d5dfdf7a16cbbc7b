#include "client/command_replay.h"

#include <cstdio>
#include <memory>
#include <utility>

#include "absl/strings/str_format.h"
#include "client/client.h"
#include "client/failure.h"
#include "client/flags.h"
#include "client/outputs.h"
#include "client/progress_line.h"
#include "client/replay_report.h"
#include "client/replay_run.h"
#include "client/replay_sender.h"
#include "client/trace.h"

namespace nsa::metadata::client {
namespace {

struct Flags {
  CommonFlags common;
  std::string trace;
  uint64_t seed = 1;
  int channels = 1;
  bool stream = false;
  int streams = 1;
  ReplayOptions replay;
};

ExitCode RunReplay(const Flags& flags) {
  absl::StatusOr<std::vector<Invocation>> trace = ReadTrace(flags.trace);
  if (!trace.ok()) return PrintUsageError(trace.status());
  const absl::StatusOr<std::unique_ptr<Client>> client = Connect(flags.common, {.channels = flags.channels});
  if (!client.ok()) return PrintUsageError(client.status());
  // One look before a hundred thousand calls that would all fail. A server that refuses to tell is there.
  const absl::Status there = (*client)->ServerInfo().status();
  if (!there.ok() && ExitCodeOf(there) != kRefused) {
    PrintFailure(there, flags.common.json);
    return ExitCodeOf(there);
  }

  const auto num_outputs = static_cast<int64_t>(AskedOutputs(flags.replay.outputs).size());
  const int64_t max_tokens = flags.stream ? MaxStreamedTokens(num_outputs) : MaxReplyTokens(num_outputs);
  ReplaySteps steps(*std::move(trace), {.seed = flags.seed, .max_tokens = max_tokens});
  ReplayTally tally;
  {
    ProgressLine line;
    Sender sender = flags.stream ? SendOverStreams(**client, flags.streams) : SendAsCalls(**client);
    tally = ReplayRun(std::move(sender), flags.replay).Run(steps, [&line, &steps](int64_t steps_sent) {
      if (line.due()) line.Show(absl::StrFormat("%d steps, %.0f %% of the trace", steps_sent, 100 * steps.progress()));
    });
  }
  const bool verified = flags.replay.verify;
  std::fputs((flags.common.json ? ReplayJson(tally, verified) : ReplayText(tally, verified)).c_str(), stdout);
  return tally.exit_code;
}

}  // namespace

void AddReplayCommand(CLI::App& program, int& exit_code) {
  const auto flags = std::make_shared<Flags>();
  CLI::App& command = *program.add_subcommand("replay", "Send the steps of a recorded load");
  AddCommonFlags(command, flags->common);
  command.add_option("--trace", flags->trace, "CSV file: TIMESTAMP,ContextTokens,GeneratedTokens")->required();
  AddModeFlag(command, flags->replay.mode)->default_str("causal");
  AddOutputsFlag(command, flags->replay.outputs);
  command.add_option("--seed", flags->seed, "The same seed gives the same requests")->capture_default_str();
  command.add_option("--in_flight", flags->replay.in_flight, "Requests under way at once")
      ->capture_default_str()
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  command.add_option("--channels", flags->channels, "Connections")->capture_default_str();
  CLI::Option* const stream = command.add_flag("--stream", flags->stream, "Send over ExpandStream calls");
  command.add_option("--streams", flags->streams, "ExpandStream calls, which requests take in turn")
      ->capture_default_str()
      ->check(CLI::Range(1, 1024))
      ->needs(stream);
  command.add_option("--max_steps", flags->replay.max_steps, "Steps to send; 0: all")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  command.add_flag("--verify", flags->replay.verify, "Compare every reply with this program's own reference");
  command.callback([flags, &exit_code] { exit_code = RunReplay(*flags); });
}

}  // namespace nsa::metadata::client
