#include "client/command_check.h"

#include <cstdio>
#include <limits>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/check.h"
#include "client/failure.h"
#include "client/json.h"

namespace nsa::metadata::client {
namespace {

struct Flags {
  std::string input;
  int32_t nsa_index_topk = 0;
  int32_t num_draft_tokens = 0;
  std::string preset;
  bool json = false;
};

std::string ToJson(const CheckResult& result) {
  std::vector<std::string> arrays;
  for (const ArrayFinding& array : result.arrays) {
    arrays.push_back(JsonObject()
                         .Add("name", array.name)
                         .Add("output", array.output)
                         .Add("difference", array.difference)
                         .Add("looks_like", array.looks_like)
                         .str());
  }
  return JsonObject()
      .Add("num_sequences", result.num_sequences)
      .Add("total_tokens", result.total_tokens)
      .Add("matches", absl::StrJoin(result.matches, ", "))
      .Add("nearest", result.nearest)
      .Add("mode", v1::SequenceMode_Name(result.mode))
      .AddJson("arrays", absl::StrCat("[", absl::StrJoin(arrays, ","), "]"))
      .Add("not_looked_at", absl::StrJoin(result.not_looked_at, ", "))
      .str();
}

void Print(const CheckResult& result) {
  std::printf("%-18s %lld sequences, %lld tokens\n", "dump", static_cast<long long>(result.num_sequences),
              static_cast<long long>(result.total_tokens));
  if (result.matches.empty()) {
    std::printf("%-18s nothing; the nearest is %s, %s\n", "matches", result.nearest.c_str(),
                v1::SequenceMode_Name(result.mode).c_str());
  } else {
    std::printf("%-18s %s\n", "matches", absl::StrJoin(result.matches, ", ").c_str());
  }
  for (const ArrayFinding& array : result.arrays) {
    std::printf("%-18s %s\n", array.name.c_str(), array.difference.empty() ? "right" : array.difference.c_str());
    if (!array.looks_like.empty()) std::printf("%-18s looks like %s\n", "", array.looks_like.c_str());
  }
  if (!result.not_looked_at.empty()) {
    std::printf("%-18s %s\n", "not looked at", absl::StrJoin(result.not_looked_at, ", ").c_str());
  }
}

ExitCode RunCheck(const Flags& flags, bool has_top_k, bool has_drafts) {
  const absl::StatusOr<Dump> dump = ReadDump(flags.input);
  if (!dump.ok()) return PrintUsageError(dump.status());
  CheckOptions options;
  if (has_top_k) options.nsa_index_topk = flags.nsa_index_topk;
  if (has_drafts) options.num_draft_tokens = flags.num_draft_tokens;
  if (!flags.preset.empty()) options.preset = flags.preset;
  const absl::StatusOr<CheckResult> result = Check(*dump, options);
  if (!result.ok()) {
    return PrintUsageError(
        absl::InvalidArgumentError(absl::StrCat(flags.input, ": ", std::string(result.status().message()))));
  }
  if (flags.json) {
    std::puts(ToJson(*result).c_str());
  } else {
    Print(*result);
  }
  return result->matches.empty() ? kWrongBytes : kOk;
}

}  // namespace

void AddCheckCommand(CLI::App& program, int& exit_code) {
  const auto flags = std::make_shared<Flags>();
  CLI::App& command = *program.add_subcommand(
      "check", "Say which engine's step builds the arrays of a dump, or where they differ and how; asks no server");
  command
      .add_option("--input", flags->input,
                  ".json or .npz file with seq_lens, extend_seq_lens and the arrays built from them")
      ->required();
  command.add_option("--nsa_index_topk", flags->nsa_index_topk, "Where the dump has none")
      ->check(CLI::Range(int32_t{1}, std::numeric_limits<int32_t>::max()));
  command.add_option("--num_draft_tokens", flags->num_draft_tokens, "Where the dump has none");
  command.add_option("--preset", flags->preset, "The one that it is to be; without, any that the arrays' names allow")
      ->check(CLI::IsMember(PresetNames()));
  command.add_flag("--json", flags->json, "Print one JSON object");
  command.footer(absl::StrCat("Names that are known:\n  ", absl::StrJoin(KnownNames(), "\n  ")));
  command.callback([flags, &command, &exit_code] {
    exit_code = RunCheck(*flags, command.count("--nsa_index_topk") > 0, command.count("--num_draft_tokens") > 0);
  });
}

}  // namespace nsa::metadata::client
