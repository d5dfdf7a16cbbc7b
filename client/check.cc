#include "client/check.h"

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <iterator>
#include <numeric>
#include <set>
#include <string_view>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "client/outputs.h"
#include "client/presets.h"
#include "client/reference.h"

namespace nsa::metadata::client {
namespace {

using Array = std::vector<int32_t>;

// The names that engines have for a thing; the first is ours.
using Names = std::vector<const char*>;
const Names kExtendSeqLens = {"extend_seq_lens", "decode_lens", "accept_lens", "extend_seq_lens_cpu"};
const Names kSeqLens = {"seq_lens", "kv_lens", "cache_seqlens", "cache_seqlens_int32", "seq_lens_cpu"};
const Names kTopK = {"nsa_index_topk", "index_topk", "dsa_index_topk", "topk"};
const Names kDraftTokens = {"num_draft_tokens", "speculative_num_draft_tokens"};
const Names kMaxDraftTokens = {"max_draft_tokens"};
// Running sums of extend_seq_lens, in place of it.
const Names kSums = {"append_indptr", "qo_indptr", "cu_seqlens_q", "query_start_loc"};
// Names that one engine alone has, and not we: they say which mode it is to be.
const std::vector<std::string_view> kCausalNames = {
    "nsa_seqlens_expanded", "dsa_seqlens_expanded",    "expanded_seq_lens", "nsa_cache_seqlens_int32",
    "dsa_cache_seqlens",    "dsa_cache_seqlens_int32", "dsa_cu_seqlens_k"};
const std::vector<std::string_view> kRepeatNames = {"kv_lens_expanded"};
// The one that builds nothing but where tokens are.
constexpr char kFlashInfer[] = "flashinfer-batch-indices-positions";
constexpr char kTargetVerify[] = "sglang-target-verify";
constexpr char kDraftExtend[] = "sglang-draft-extend";
// What is compared is built, several times over.
constexpr int64_t kMostTokens = int64_t{1} << 26;

Names NamesOf(v1::Output output) {
  switch (output) {
    case v1::OUTPUT_SEQLENS_EXPANDED:
      return {"seqlens_expanded", "nsa_seqlens_expanded", "dsa_seqlens_expanded", "expanded_seq_lens",
              "kv_lens_expanded"};
    case v1::OUTPUT_NSA_CACHE_SEQLENS:
      return {"nsa_cache_seqlens", "nsa_cache_seqlens_int32", "dsa_cache_seqlens", "dsa_cache_seqlens_int32"};
    case v1::OUTPUT_TOKEN_TO_BATCH_IDX:
      return {"token_to_batch_idx", "batch_indices"};
    case v1::OUTPUT_POSITIONS:
      return {"positions"};
    case v1::OUTPUT_CU_SEQLENS_Q:
      return {"cu_seqlens_q"};
    case v1::OUTPUT_CU_SEQLENS_K:
      return {"cu_seqlens_k"};
    case v1::OUTPUT_NSA_CU_SEQLENS_K:
      return {"nsa_cu_seqlens_k", "dsa_cu_seqlens_k"};
    case v1::OUTPUT_KS:
      return {"ks", "cu_seqlen_ks"};
    case v1::OUTPUT_KE:
      return {"ke", "cu_seqlen_ke"};
    default:
      return {};
  }
}

absl::Status Wrong(const std::string& what) { return absl::InvalidArgumentError(what); }

using Named = std::pair<const std::string, Array>;

const Named* Find(const Dump& dump, const Names& names) {
  for (const char* name : names) {
    if (const auto found = dump.arrays.find(name); found != dump.arrays.end()) return &*found;
  }
  return nullptr;
}

// "seq_lens (or kv_lens, cache_seqlens)".
std::string AnyOf(const Names& names) {
  return absl::StrCat(names.front(), " (or ", absl::StrJoin(names.begin() + 1, names.end(), ", "), ")");
}

std::optional<int32_t> Number(const Dump& dump, const Names& names, std::optional<int32_t> instead) {
  const auto* found = Find(dump, names);
  return found != nullptr && found->second.size() == 1 ? found->second.front() : instead;
}

struct Given {
  std::string name;
  const OutputField* field = nullptr;
  const Array* values = nullptr;
};

struct Candidate {
  std::vector<std::string> presets;
  PresetLengths lengths;
  // Whether the dump may be it; what may not only explains differences.
  bool may_match = true;
  v1::ExpandResponse response = {};

  Array Want(const OutputField& field) const {
    const Values& values = (response.*field.get)();
    return {values.begin(), values.end()};
  }
};

// Whether the preset's cu_seqlens_q may be as IsOneAToken says.
bool HasOneAToken(std::string_view preset) { return preset == kTargetVerify || preset == kDraftExtend; }

// SGLang's cu_seqlens_q in target_verify and draft_extend: each token is a query of its own, so that it is 0 to
// total_tokens, and no running sum of the sequences.
bool IsOneAToken(const Given& given, const Candidate& candidate, const std::optional<std::string>& preset) {
  if (preset ? !HasOneAToken(*preset) : std::ranges::none_of(candidate.presets, HasOneAToken)) return false;
  if (given.name != "cu_seqlens_q" || candidate.lengths.mode != v1::SEQUENCE_MODE_CAUSAL) return false;
  const Array& got = *given.values;
  if (static_cast<int64_t>(got.size()) != static_cast<int64_t>(candidate.response.total_tokens()) + 1) return false;
  for (size_t i = 0; i < got.size(); ++i) {
    if (static_cast<size_t>(got[i]) != i) return false;
  }
  return true;
}

size_t FirstDifference(const Array& got, const Array& want) {
  return static_cast<size_t>(std::ranges::mismatch(got, want).in1 - got.begin());
}

bool IsPrefix(const Array& part, const Array& whole) {
  return part.size() <= whole.size() && std::equal(part.begin(), part.end(), whole.begin());
}

// "seqlens_expanded[4] (sequence 1, its token 0) is 11, want 10".
std::string Describe(const Given& given, const Array& want, const Candidate& candidate) {
  const Array& got = *given.values;
  const size_t at = FirstDifference(got, want);
  std::string where = absl::StrCat(given.name, "[", at, "]");
  if (given.field->per_token && at < want.size()) {
    size_t sequence = 0;
    size_t token = at;
    for (; token >= static_cast<size_t>(candidate.lengths.extend_seq_lens[sequence]); ++sequence) {
      token -= static_cast<size_t>(candidate.lengths.extend_seq_lens[sequence]);
    }
    absl::StrAppend(&where, " (sequence ", sequence, ", its token ", token, ")");
  }
  if (at >= got.size()) return absl::StrCat(where, " is missing, want ", want[at]);
  if (at >= want.size()) return absl::StrCat(where, " is ", got[at], ", and there are to be ", want.size(), " values");
  return absl::StrCat(where, " is ", got[at], ", want ", want[at]);
}

// By how much all values are too large; nothing if by different numbers.
std::optional<int64_t> ConstantDifference(const Array& got, const Array& want) {
  if (got.size() != want.size() || got.empty()) return std::nullopt;
  const int64_t difference = int64_t{got.front()} - want.front();
  for (size_t i = 0; i < got.size(); ++i) {
    if (int64_t{got[i]} - want[i] != difference) return std::nullopt;
  }
  return difference;
}

Array Bounded(const Array& values, int32_t bound) {
  Array bounded;
  for (int32_t value : values) bounded.push_back(std::min(value, bound));
  return bounded;
}

// seqlens_expanded without its lower bound.
Array Unclamped(const Candidate& candidate) {
  Array values;
  for (size_t b = 0; b < candidate.lengths.seq_lens.size(); ++b) {
    const int32_t q = candidate.lengths.extend_seq_lens[b];
    for (int32_t i = 0; i < q; ++i) values.push_back(candidate.lengths.seq_lens[b] - q + i + 1);
  }
  return values;
}

// The values whose running sums, from 0, `sums` are; nothing if they aren't any.
std::optional<Array> Summands(const Array& sums) {
  if (sums.empty() || sums.front() != 0 || !std::ranges::is_sorted(sums)) return std::nullopt;
  Array values;
  for (size_t i = 1; i < sums.size(); ++i) values.push_back(sums[i] - sums[i - 1]);
  return values;
}

// What is wrong with the bound by nsa_index_topk, in one of the two arrays that have it; empty: nothing, or not that.
std::string WrongBound(const Given& given, const Candidate& nearest) {
  const bool sums = given.field->output == v1::OUTPUT_NSA_CU_SEQLENS_K;
  if (!sums && given.field->output != v1::OUTPUT_NSA_CACHE_SEQLENS) return "";
  const std::optional<Array> bounded = sums ? Summands(*given.values) : *given.values;
  if (!bounded || bounded->empty()) return "";
  const Array expanded = nearest.Want(AllOutputs()[0]);
  if (*bounded == expanded) {
    return absl::StrCat("a missing clamp: it is ", sums ? "the running sums of " : "",
                        "seqlens_expanded, not bounded by nsa_index_topk");
  }
  const int32_t largest = std::ranges::max(*bounded);
  if (*bounded == Bounded(expanded, largest)) return absl::StrCat("a wrong top-k: as with nsa_index_topk ", largest);
  return "";
}

std::string LooksLike(const Given& given, const Array& want, const Candidate& nearest,
                      const std::vector<Candidate>& candidates) {
  const Array& got = *given.values;
  if (IsPrefix(want, got)) {
    return absl::StrCat("a stale tail: ", got.size() - want.size(), " values beyond the ", want.size(),
                        " there are to be");
  }
  if (IsPrefix(got, want)) return absl::StrCat("cut off: ", want.size() - got.size(), " values are missing at the end");
  for (const Candidate& other : candidates) {
    if (&other == &nearest || got != other.Want(*given.field)) continue;
    const std::string built = absl::StrCat("what ", absl::StrJoin(other.presets, ", "), " builds");
    if (other.lengths.mode == nearest.lengths.mode) return built;
    return absl::StrCat("the other mode: it is ", built, ", ", v1::SequenceMode_Name(other.lengths.mode));
  }
  const std::optional<int64_t> by = ConstantDifference(got, want);
  if (by == 1 || by == -1) return absl::StrCat("off by one: all values are 1 too ", *by > 0 ? "large" : "small");
  if (std::string bound = WrongBound(given, nearest); !bound.empty()) return bound;
  if (by) return absl::StrCat("all values are ", std::abs(*by), " too ", *by > 0 ? "large" : "small");
  if (nearest.lengths.mode == v1::SEQUENCE_MODE_CAUSAL && got == Unclamped(nearest) &&
      given.field->output == v1::OUTPUT_SEQLENS_EXPANDED) {
    return "a missing clamp: values are negative where they are to be 0";
  }
  const size_t at = FirstDifference(got, want);
  const auto rest = static_cast<std::ptrdiff_t>(at);
  if (at > 0 && got.size() > at + 1 && got.size() == want.size() &&
      std::equal(got.begin() + rest, got.end(), want.begin() + rest, std::not_equal_to<>())) {
    return "a stale tail: right up to there, and no value after it";
  }
  return "";
}

bool AllAre(const Array& values, int32_t value) {
  return !values.empty() && std::ranges::all_of(values, [&](int32_t one) { return one == value; });
}

enum class Kind : uint8_t { kLengths, kSums };

// Refuses a value that is less than 0 or, among sums, than the one before it.
absl::Status CheckLeast(const Named& array, Kind kind) {
  int32_t least = 0;
  for (size_t i = 0; i < array.second.size(); ++i) {
    const int32_t value = array.second[i];
    if (value < least) return Wrong(absl::StrCat(array.first, "[", i, "] is ", value, ", must be ", least, " or more"));
    if (kind == Kind::kSums) least = value;
  }
  return absl::OkStatus();
}

absl::Status CheckTokens(const std::string& what, int64_t tokens) {
  if (tokens <= kMostTokens) return absl::OkStatus();
  return Wrong(absl::StrCat(what, " comes to ", tokens, " tokens, must be at most ", kMostTokens));
}

// The dump's extend_seq_lens, by itself or by its running sums; nothing where it has neither.
absl::StatusOr<std::optional<Array>> ExtendSeqLensOf(const Dump& dump, const Named& s, bool has_drafts) {
  const size_t num_sequences = s.second.size();
  const Named* found = Find(dump, kExtendSeqLens);
  const Kind kind = found != nullptr ? Kind::kLengths : Kind::kSums;
  if (found == nullptr) {
    found = Find(dump, kSums);
    if (found == nullptr || found->second.size() != num_sequences + 1) return std::nullopt;
  } else if (found->second.size() != num_sequences) {
    return Wrong(
        absl::StrCat(s.first, " has ", num_sequences, " values, ", found->first, " has ", found->second.size()));
  }
  if (absl::Status status = CheckLeast(*found, kind); !status.ok()) {
    // With the drafts' number it is needed for no lengths, and compared itself.
    if (has_drafts && found->first == "cu_seqlens_q") return std::nullopt;
    return status;
  }
  Array q = found->second;
  if (kind == Kind::kSums) q = FlashInferBatchIndicesPositions(found->second, {}).extend_seq_lens;
  const int64_t tokens = std::accumulate(q.begin(), q.end(), int64_t{0});
  if (absl::Status status = CheckTokens(found->first, tokens); !status.ok()) return status;
  return q;
}

// A number of drafts for each sequence, in the dump or given; nothing where it is neither.
absl::StatusOr<std::optional<int32_t>> DraftsOf(const Dump& dump, const Names& names, std::optional<int32_t> instead,
                                                size_t num_sequences) {
  const std::optional<int32_t> drafts = Number(dump, names, instead);
  if (!drafts) return std::nullopt;
  const Named* const found = Find(dump, names);
  const std::string name = found != nullptr ? found->first : names.front();
  if (*drafts < 0) return Wrong(absl::StrCat(name, " is ", *drafts, ", must be 0 or more"));
  const std::string what = absl::StrCat(name, " ", *drafts, " for ", num_sequences, " sequences");
  if (absl::Status status = CheckTokens(what, *drafts * static_cast<int64_t>(num_sequences)); !status.ok()) {
    return status;
  }
  return drafts;
}

// target_verify's lengths. SGLang's cache_seqlens_int32 has the drafts in it already.
PresetLengths TargetVerify(const Named& s, int32_t drafts) {
  if (s.first != "cache_seqlens_int32") return SglangTargetVerify(s.second, drafts);
  return SglangExtend(Array(s.second.size(), drafts), s.second);
}

// Whether no length is negative, as one that passes int32, and the tokens are few enough to be built.
bool CanBeBuilt(const PresetLengths& lengths) {
  int64_t tokens = 0;
  for (int32_t length : lengths.extend_seq_lens) {
    if (length < 0) return false;
    tokens += length;
  }
  return tokens <= kMostTokens && std::ranges::all_of(lengths.seq_lens, [](int32_t length) { return length >= 0; });
}

absl::StatusOr<std::vector<Candidate>> CandidatesOf(const Dump& dump, const CheckOptions& options) {
  const auto* s = Find(dump, kSeqLens);
  if (s == nullptr) return Wrong(absl::StrCat("there is no array ", AnyOf(kSeqLens)));
  if (absl::Status status = CheckLeast(*s, Kind::kLengths); !status.ok()) return status;
  const size_t num_sequences = s->second.size();
  // A decoded token for each is the least that is built.
  if (absl::Status status = CheckTokens(s->first, static_cast<int64_t>(num_sequences)); !status.ok()) return status;
  const auto checked_drafts = DraftsOf(dump, kDraftTokens, options.num_draft_tokens, num_sequences);
  if (!checked_drafts.ok()) return checked_drafts.status();
  const std::optional<int32_t>& drafts = *checked_drafts;
  const absl::StatusOr<std::optional<Array>> given = ExtendSeqLensOf(dump, *s, drafts.has_value());
  if (!given.ok()) return given.status();
  const std::optional<Array>& q = *given;
  if (options.preset == kTargetVerify && !drafts && (!q || AllAre(*q, 1))) {
    return Wrong(absl::StrCat("preset ", kTargetVerify, " needs ", AnyOf(kDraftTokens),
                              ", which is neither there nor given by --num_draft_tokens"));
  }
  std::vector<Candidate> candidates;
  if (!q || AllAre(*q, 1)) candidates.push_back({{"sglang-decode"}, SglangDecode(s->second)});
  if (q) {
    candidates.push_back({{"sglang-extend", kDraftExtend, "vllm-ragged-decode"}, SglangExtend(*q, s->second)});
    PresetLengths repeat = SglangExtend(*q, s->second);
    repeat.mode = v1::SEQUENCE_MODE_REPEAT;
    const bool even = !q->empty() && AllAre(*q, q->front());
    candidates.push_back({{even ? "tensorrt-llm-kv-lens-expanded" : "repeat"}, std::move(repeat), even});
    if (even && q->front() > 1 && !drafts) {
      candidates.push_back({{kTargetVerify}, TargetVerify(*s, q->front())});
    }
  } else {
    const auto most_drafts = DraftsOf(dump, kMaxDraftTokens, drafts, num_sequences);
    if (!most_drafts.ok()) return most_drafts.status();
    if (*most_drafts) {
      candidates.push_back({{"tensorrt-llm-kv-lens-expanded"}, TensorRtLlmKvLensExpanded(s->second, **most_drafts)});
    }
  }
  if (drafts) candidates.push_back({{kTargetVerify}, TargetVerify(*s, *drafts)});
  std::erase_if(candidates, [](const Candidate& candidate) { return !CanBeBuilt(candidate.lengths); });
  return candidates;
}

// Takes out what the dump can't be by its arrays' names, or is not to be by the caller's word.
absl::Status Restrict(const std::vector<Given>& arrays, const std::optional<std::string>& preset,
                      std::vector<Candidate>& candidates) {
  const auto any_named = [&](const std::vector<std::string_view>& names) {
    return std::ranges::any_of(arrays,
                               [&](const Given& given) { return std::ranges::find(names, given.name) != names.end(); });
  };
  if (any_named(kCausalNames)) {
    for (Candidate& candidate : candidates) candidate.may_match &= candidate.lengths.mode == v1::SEQUENCE_MODE_CAUSAL;
  } else if (any_named(kRepeatNames)) {
    // Of any lengths, though an engine's step has as many of each sequence.
    for (Candidate& candidate : candidates) candidate.may_match = candidate.lengths.mode == v1::SEQUENCE_MODE_REPEAT;
  }
  if (!preset) {
    if (std::ranges::any_of(candidates, &Candidate::may_match)) return absl::OkStatus();
    return Wrong(absl::StrCat("no preset of the mode that the arrays' names say has such lengths: ",
                              AnyOf(kExtendSeqLens), " or ", AnyOf(kDraftTokens), " is missing"));
  }
  std::set<std::string> fitting;
  bool fits = false;
  for (Candidate& candidate : candidates) {
    // What the caller says weighs more than a name.
    candidate.may_match = std::ranges::find(candidate.presets, *preset) != candidate.presets.end();
    fits |= candidate.may_match;
    fitting.insert(candidate.presets.begin(), candidate.presets.end());
  }
  if (fits) return absl::OkStatus();
  return Wrong(
      absl::StrCat("the dump's lengths are none of preset ", *preset, ", but of ", absl::StrJoin(fitting, ", ")));
}

// Whether `array`, which is bounded by it, can be built with the top-k there is.
absl::Status CheckTopK(const Dump& dump, const std::string& array, std::optional<int32_t> top_k) {
  if (!top_k) return Wrong(absl::StrCat(array, " needs ", AnyOf(kTopK), ", which is neither there nor given"));
  if (*top_k >= 1) return absl::OkStatus();
  const Named* const found = Find(dump, kTopK);
  return Wrong(absl::StrCat(found != nullptr ? found->first : kTopK.front(), " is ", *top_k, ", and ", array,
                            " needs at least 1"));
}

// All of an output's, under whatever name: one may be right, and another wrong.
absl::StatusOr<std::vector<Given>> ArraysOf(const Dump& dump) {
  std::vector<Given> arrays;
  for (const OutputField& field : AllOutputs()) {
    for (const char* name : NamesOf(field.output)) {
      if (const auto found = dump.arrays.find(name); found != dump.arrays.end()) {
        arrays.push_back({found->first, &field, &found->second});
      }
    }
  }
  if (!arrays.empty()) return arrays;
  std::vector<std::string> names;
  for (const OutputField& field : AllOutputs()) names.emplace_back(field.name);
  return Wrong(absl::StrCat("there is no array to check, as ", absl::StrJoin(names, ", ")));
}

std::vector<std::string> NotLookedAt(const Dump& dump, const std::vector<Given>& arrays) {
  std::set<std::string> looked_at;
  for (const Given& given : arrays) looked_at.insert(given.name);
  const auto look = [&](const Names& names, const std::function<bool(const Array&)>& is_used) {
    const auto* found = Find(dump, names);
    const bool used = found != nullptr && is_used(found->second);
    if (used) looked_at.insert(found->first);
    return used;
  };
  const auto any = [](const Array&) { return true; };
  const auto is_number = [](const Array& values) { return values.size() == 1; };
  look(kSeqLens, any);
  const size_t num_sequences = Find(dump, kSeqLens)->second.size();
  // Without lengths their sums take their place, and without both the most drafts.
  const bool has_lengths =
      look(kExtendSeqLens, any) || look(kSums, [&](const Array& sums) { return sums.size() == num_sequences + 1; });
  look(kTopK, is_number);
  look(kDraftTokens, is_number);
  if (!has_lengths) look(kMaxDraftTokens, is_number);
  std::set<std::string> rest;
  for (const auto& [name, values] : dump.arrays) {
    if (!looked_at.contains(name)) rest.insert(name);
  }
  for (const auto& [name, what] : dump.skipped) rest.insert(name);
  return {rest.begin(), rest.end()};
}

// Refuses a name that is known where there is nothing to compare, or to compare with, under it.
absl::Status CheckSkipped(const Dump& dump) {
  std::set<std::string> known;
  for (const Names* names : {&kExtendSeqLens, &kSums, &kSeqLens, &kTopK, &kDraftTokens, &kMaxDraftTokens}) {
    known.insert(names->begin(), names->end());
  }
  for (const OutputField& field : AllOutputs()) {
    const Names names = NamesOf(field.output);
    known.insert(names.begin(), names.end());
  }
  for (const auto& [name, what] : dump.skipped) {
    if (known.contains(name)) return Wrong(absl::StrCat(name, " has ", what));
  }
  return absl::OkStatus();
}

// Refuses arrays of more tokens than decode has where nothing says of how many else.
absl::Status CheckDecode(const std::vector<Given>& arrays, const std::vector<Candidate>& candidates) {
  if (candidates.size() != 1 || candidates.front().presets.front() != "sglang-decode") return absl::OkStatus();
  const size_t num_sequences = candidates.front().lengths.seq_lens.size();
  for (const Given& given : arrays) {
    if (!given.field->per_token || given.values->size() <= num_sequences) continue;
    return Wrong(absl::StrCat(given.name, " has ", given.values->size(), " values for ", num_sequences,
                              " sequences, and there is no array ", AnyOf(kExtendSeqLens)));
  }
  return absl::OkStatus();
}

bool NeedsTopK(v1::Output output) {
  return output == v1::OUTPUT_NSA_CACHE_SEQLENS || output == v1::OUTPUT_NSA_CU_SEQLENS_K;
}

bool IsPlace(v1::Output output) { return output == v1::OUTPUT_TOKEN_TO_BATCH_IDX || output == v1::OUTPUT_POSITIONS; }

// Computes what each would have in place of the arrays.
void Compute(const std::vector<Given>& arrays, int32_t top_k, std::vector<Candidate>& candidates) {
  for (Candidate& candidate : candidates) {
    Request request = candidate.lengths.ToRequest();
    request.nsa_index_topk = top_k;
    request.outputs = {v1::OUTPUT_SEQLENS_EXPANDED};  // others are explained by it
    for (const Given& given : arrays) request.outputs.push_back(given.field->output);
    candidate.response = Reference(request);
  }
}

// How much of the arrays is a candidate's; the more the greater.
struct Score {
  size_t right = 0;   // arrays
  size_t before = 0;  // values that come before a wrong one
  bool one_a_token = false;

  bool operator>(const Score& other) const { return std::pair(right, before) > std::pair(other.right, other.before); }
};

Score ScoreOf(const Candidate& candidate, const std::vector<Given>& arrays, const std::optional<std::string>& preset) {
  Score score;
  for (const Given& given : arrays) {
    const Array want = candidate.Want(*given.field);
    const bool same = *given.values == want;
    const bool right = same || IsOneAToken(given, candidate, preset);
    score.one_a_token = score.one_a_token || (right && !same);
    score.right += right;
    score.before += right ? given.values->size() : FirstDifference(*given.values, want);
  }
  return score;
}

ArrayFinding FindingOf(const Given& given, const Candidate& nearest, const std::vector<Candidate>& candidates,
                       const std::optional<std::string>& preset) {
  const Array want = nearest.Want(*given.field);
  ArrayFinding finding = {
      .name = given.name, .output = std::string(given.field->name), .difference = "", .looks_like = ""};
  if (*given.values == want) return finding;
  if (IsOneAToken(given, nearest, preset)) {
    finding.looks_like = absl::StrCat("SGLang's, a query for each token: 0 to ", given.values->size() - 1);
    return finding;
  }
  finding.difference = Describe(given, want, nearest);
  finding.looks_like = LooksLike(given, want, nearest, candidates);
  return finding;
}

}  // namespace

const std::vector<std::string>& PresetNames() {
  static const auto& names = *new std::vector<std::string>{"sglang-decode",
                                                           "sglang-extend",
                                                           kDraftExtend,
                                                           kTargetVerify,
                                                           "vllm-ragged-decode",
                                                           kFlashInfer,
                                                           "tensorrt-llm-kv-lens-expanded",
                                                           "repeat"};
  return names;
}

std::vector<std::string> KnownNames() {
  std::vector<std::string> lines;
  for (const Names* names : {&kExtendSeqLens, &kSeqLens, &kTopK, &kDraftTokens, &kMaxDraftTokens}) {
    lines.push_back(absl::StrJoin(*names, ", "));
  }
  lines.front() += absl::StrCat("; or running sums: ", absl::StrJoin(kSums, ", "));
  for (const OutputField& field : AllOutputs()) lines.push_back(absl::StrJoin(NamesOf(field.output), ", "));
  return lines;
}

absl::StatusOr<CheckResult> Check(const Dump& dump, const CheckOptions& options) {
  if (absl::Status status = CheckSkipped(dump); !status.ok()) return status;
  absl::StatusOr<std::vector<Candidate>> candidates = CandidatesOf(dump, options);
  if (!candidates.ok()) return candidates.status();
  const absl::StatusOr<std::vector<Given>> arrays = ArraysOf(dump);
  if (!arrays.ok()) return arrays.status();
  if (absl::Status status = CheckDecode(*arrays, *candidates); !status.ok()) return status;
  const std::optional<int32_t> top_k = Number(dump, kTopK, options.nsa_index_topk);
  for (const Given& given : *arrays) {
    if (!NeedsTopK(given.field->output)) continue;
    if (absl::Status status = CheckTopK(dump, given.name, top_k); !status.ok()) return status;
  }
  Compute(*arrays, top_k.value_or(1), *candidates);
  const bool only_places =
      std::ranges::all_of(*arrays, [](const Given& given) { return IsPlace(given.field->output); });
  if (only_places && (!options.preset || *options.preset == kFlashInfer)) {
    for (Candidate& candidate : *candidates) candidate.presets = {kFlashInfer};
    for (Candidate& candidate : *candidates) candidate.may_match = true;
  }
  if (absl::Status status = Restrict(*arrays, options.preset, *candidates); !status.ok()) return status;

  CheckResult result;
  const Candidate* nearest = nullptr;
  Score nearest_score;
  for (const Candidate& candidate : *candidates) {
    if (!candidate.may_match) continue;
    const Score score = ScoreOf(candidate, *arrays, options.preset);
    if (score.right == arrays->size()) {
      std::ranges::copy_if(candidate.presets, std::back_inserter(result.matches),
                           [&](const auto& preset) { return !score.one_a_token || HasOneAToken(preset); });
    }
    if (nearest == nullptr || score > nearest_score) {
      nearest = &candidate;
      nearest_score = score;
    }
  }
  result.nearest = absl::StrJoin(nearest->presets, ", ");
  result.mode = nearest->lengths.mode;
  result.num_sequences = static_cast<int64_t>(nearest->lengths.seq_lens.size());
  result.total_tokens = nearest->response.total_tokens();
  result.not_looked_at = NotLookedAt(dump, *arrays);
  for (const Given& given : *arrays) {
    result.arrays.push_back(FindingOf(given, *nearest, *candidates, options.preset));
  }
  return result;
}

}  // namespace nsa::metadata::client
