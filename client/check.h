// Whether an engine's arrays are right, and if not, what is wrong with them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/dump.h"
#include "nsa/metadata/v1/metadata.pb.h"

namespace nsa::metadata::client {

struct CheckOptions {
  // What the dump doesn't say itself.
  std::optional<int32_t> nsa_index_topk = std::nullopt;
  std::optional<int32_t> num_draft_tokens = std::nullopt;
  // Which preset is to match, as "sglang-extend"; nothing: any that the arrays' names allow. Names that only SGLang or
  // vLLM have stand for CAUSAL, TensorRT-LLM's for REPEAT.
  std::optional<std::string> preset = std::nullopt;
};

// The names that `preset` may be.
const std::vector<std::string>& PresetNames();

// The names that a dump's lengths, numbers and arrays may have, a line for each of ours, which is the first of its
// line.
std::vector<std::string> KnownNames();

// Of one of the dump's arrays.
struct ArrayFinding {
  std::string name;  // in the dump
  std::string output;
  // Where it differs first, as "seqlens_expanded[4] (sequence 1, its token 0) is 11, want 10"; empty if it doesn't.
  std::string difference;
  // What that looks like, as "all values are 1 too large"; may be empty. Without a difference: whose form it has, where
  // that isn't ours.
  std::string looks_like;
};

struct CheckResult {
  // Presets that build every array of the dump as it is, as "sglang-extend"; empty: none does.
  std::vector<std::string> matches;
  // The nearest, which the findings compare with.
  std::string nearest;
  v1::SequenceMode mode = v1::SEQUENCE_MODE_UNSPECIFIED;
  int64_t num_sequences = 0;
  int64_t total_tokens = 0;
  std::vector<ArrayFinding> arrays;
  // The names in the dump of what was neither compared nor compared with.
  std::vector<std::string> not_looked_at;
};

// Compares the arrays of `dump`, which may have their engines' names, with what each preset makes of its lengths.
// INVALID_ARGUMENT: lengths are missing, negative or of different sizes, there is nothing to compare, nsa_index_topk is
// needed and not there, or the lengths are of no preset that was asked for or that the names allow.
absl::StatusOr<CheckResult> Check(const Dump& dump, const CheckOptions& options);

}  // namespace nsa::metadata::client
