#include "client/command_expand.h"

#include <cstdio>
#include <limits>
#include <memory>

#include "client/client.h"
#include "client/expand_report.h"
#include "client/failure.h"
#include "client/flags.h"
#include "client/reference.h"

namespace nsa::metadata::client {
namespace {

constexpr int64_t kMaxRows = 64;

struct Flags {
  CommonFlags common;
  std::vector<int32_t> extend_seq_lens;
  std::vector<int32_t> seq_lens;
  v1::SequenceMode mode = v1::SEQUENCE_MODE_UNSPECIFIED;
  int32_t nsa_index_topk = 2048;
  std::vector<v1::Output> outputs;
  bool timing = false;
  bool verify = false;
  bool all_rows = false;
};

Request RequestOf(const Flags& flags) {
  Request request(flags.mode);
  request.extend_seq_lens = flags.extend_seq_lens;
  request.seq_lens = flags.seq_lens;
  request.nsa_index_topk = flags.nsa_index_topk;
  request.outputs = flags.outputs;
  request.include_timing = flags.timing;
  return request;
}

ExitCode RunExpand(const Flags& flags) {
  ClientOptions options;
  options.max_receive_message_bytes = std::numeric_limits<int>::max();
  const absl::StatusOr<std::unique_ptr<Client>> client = Connect(flags.common, options);
  if (!client.ok()) return PrintUsageError(client.status());

  const Request request = RequestOf(flags);
  const absl::StatusOr<v1::ExpandResponse> response = (*client)->Expand(request);
  if (!response.ok()) {
    PrintFailure(response.status(), flags.common.json);
    return ExitCodeOf(response.status());
  }
  const int64_t max_rows = flags.all_rows ? std::numeric_limits<int64_t>::max() : kMaxRows;
  const std::string report =
      flags.common.json ? ExpandJson(request, *response) : ExpandTable(request, *response, max_rows);
  std::fputs(report.c_str(), stdout);
  if (!flags.verify) return kOk;
  const std::string difference = FirstDifference(*response, Reference(request));
  if (!difference.empty()) std::fprintf(stderr, "wrong: %s\n", difference.c_str());
  return difference.empty() ? kOk : kWrongBytes;
}

}  // namespace

void AddExpandCommand(CLI::App& program, int& exit_code) {
  const auto flags = std::make_shared<Flags>();
  CLI::App& command = *program.add_subcommand("expand", "Expand one batch of sequences");
  AddCommonFlags(command, flags->common);
  AddLengthsFlag(command, "--extend_seq_lens", "Tokens that each sequence extends by, as 3,2", flags->extend_seq_lens)
      ->required();
  AddLengthsFlag(command, "--seq_lens", "How long each sequence is, tokens, as 10,4", flags->seq_lens)->required();
  AddModeFlag(command, flags->mode)->required();
  command.add_option("--nsa_index_topk", flags->nsa_index_topk, "The bound of nsa_cache_seqlens, tokens")
      ->capture_default_str();
  AddOutputsFlag(command, flags->outputs);
  command.add_flag("--timing", flags->timing, "Say where the time went in the server");
  command.add_flag("--verify", flags->verify, "Compare the reply with this program's own reference");
  command.add_flag("--all_rows", flags->all_rows, "Print every row of the table, not only the first 64");
  command.callback([flags, &exit_code] { exit_code = RunExpand(*flags); });
}

}  // namespace nsa::metadata::client
