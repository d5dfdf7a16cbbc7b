#include "client/command_bench.h"

#include <cstdio>
#include <memory>

#include "absl/strings/str_format.h"
#include "client/bench_report.h"
#include "client/bench_request.h"
#include "client/client.h"
#include "client/failure.h"
#include "client/flags.h"
#include "client/load.h"
#include "client/progress_line.h"

namespace nsa::metadata::client {
namespace {

// What --timeout=0 stands for.
constexpr absl::Duration kAnyTime = absl::Hours(24);

struct Flags {
  CommonFlags common;
  BenchShape shape;
  LoadOptions load;
};

// Says when the replies under way take more than half of the server's memory for them: beyond that it copies replies,
// and then refuses requests.
void NoteBudget(const Flags& flags, const BenchRequest& request) {
  constexpr int64_t kBlock = 64 << 10;
  constexpr int64_t kFitsAnyway = 64 << 20;
  const auto reply = static_cast<int64_t>(request.reply().ByteSizeLong());
  const int64_t needed = (reply + kBlock) / kBlock * kBlock * flags.load.in_flight;
  if (needed <= kFitsAnyway) return;
  const absl::StatusOr<std::unique_ptr<Client>> client = Connect(flags.common);
  const auto info = client.ok() ? (*client)->ServerInfo(absl::Now() + absl::Seconds(1)) : client.status();
  if (!info.ok()) return;  // the load itself will tell
  const int64_t budget = info->limits().output_budget_bytes();
  if (needed <= budget / 2) return;
  std::fputs(absl::StrFormat("note: %d replies of %d bytes take %d bytes of output memory, more than half of the "
                             "server's output_budget_bytes %d; with %d they would fit\n",
                             flags.load.in_flight, reply, needed, budget, 2 * needed)
                 .c_str(),
             stderr);
}

ExitCode RunBench(Flags flags) {
  flags.load.target = flags.common.target;
  flags.load.timeout = flags.common.timeout == absl::ZeroDuration() ? kAnyTime : flags.common.timeout;
  const absl::StatusOr<BenchRequest> request = BenchRequest::Create(flags.shape);
  if (!request.ok()) return PrintUsageError(request.status());
  ClientOptions connection;
  if (const absl::Status status = SetConnection(flags.common, connection); !status.ok()) {
    return PrintUsageError(status);
  }
  flags.load.credentials = connection.credentials;
  flags.load.server_name = connection.server_name;
  NoteBudget(flags, *request);
  absl::StatusOr<LoadResult> result;
  {
    ProgressLine line;
    result = RunLoad(*request, flags.load, [&line](int64_t ended) {
      if (line.due()) line.Show(absl::StrFormat("%d requests", ended));
    });
  }
  if (!result.ok()) return PrintUsageError(result.status());
  std::fputs(
      (flags.common.json ? BenchJson(*request, flags.load, *result) : BenchText(*request, flags.load, *result)).c_str(),
      stdout);
  return result->tally.exit_code;
}

}  // namespace

void AddBenchCommand(CLI::App& program, int& exit_code) {
  const auto flags = std::make_shared<Flags>();
  CLI::App& command = *program.add_subcommand("bench", "Measure a server under a known load; every reply is verified");
  AddCommonFlags(command, flags->common);
  command.add_option("--num_sequences", flags->shape.num_sequences, "Sequences a request")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 24));
  CLI::Option* const bytes =
      command.add_option("--reply_bytes", flags->shape.reply_bytes, "As many tokens as a reply of this size holds")
          ->capture_default_str()
          ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  command.add_option("--total_tokens", flags->shape.total_tokens, "Tokens a request, in place of --reply_bytes")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 28))
      ->excludes(bytes);
  AddModeFlag(command, flags->shape.mode)->default_str("causal");
  AddOutputsFlag(command, flags->shape.outputs);
  command.add_option("--seed", flags->shape.seed, "The same seed gives the same lengths")->capture_default_str();
  command.add_option("--in_flight", flags->load.in_flight, "Requests under way at once; with --rate at most")
      ->capture_default_str();
  command
      .add_option("--rate", flags->load.rate,
                  "Requests a second, however slow the answers; 0: a new one for each that ends")
      ->capture_default_str();
  command.add_option("--channels", flags->load.channels, "Connections")->capture_default_str();
  command.add_option("--streams", flags->load.streams, "ExpandStream calls that carry the requests; 0: unary calls")
      ->capture_default_str();
  command
      .add_option("--max_attempts", flags->load.max_attempts,
                  "Attempts a call, as the client library makes them; 1: every refusal is seen")
      ->capture_default_str();
  command.add_option("--threads", flags->load.threads, "Threads that send and check; 0: one for two cores")
      ->capture_default_str();
  AddDurationFlag(command, "--duration", "How long to measure", flags->load.duration);
  AddDurationFlag(command, "--warm_up", "How long to wait before", flags->load.warm_up);
  command.add_flag("--timing", flags->shape.include_timing, "Say where the time went in the server");
  command.callback([flags, &exit_code] { exit_code = RunBench(*flags); });
}

}  // namespace nsa::metadata::client
