#include "kernels/measure.h"

#include <algorithm>

namespace nsa::metadata::kernels {
namespace {

// The largest ks (`plus_length` false) or ke (true): both rise with the sequence, so the last sequence with a token
// decides ks, but an earlier one, longer, may decide ke.
int64_t LargestStart(std::span<const int32_t> extend_seq_lens, std::span<const int32_t> seq_lens, bool plus_length) {
  int64_t start = 0;
  int64_t largest = 0;
  for (size_t b = 0; b < seq_lens.size(); ++b) {
    if (extend_seq_lens[b] > 0) largest = std::max(largest, start + (plus_length ? seq_lens[b] : 0));
    start += seq_lens[b];
  }
  return largest;
}

}  // namespace

int64_t NsaTokens(const RequestSpec& spec, int64_t q, int64_t s) {
  const int64_t k = spec.nsa_index_topk;
  if (spec.mode == SequenceMode::kRepeat) return q * std::min(s, k);
  // seqlens_expanded rises by one a token and ends at s: the positive ones are first..s, and those above K count K.
  const int64_t first = std::max<int64_t>(s - q + 1, 1);
  const int64_t ramp_end = std::min(s, k);
  const int64_t ramp = std::max<int64_t>(ramp_end - first + 1, 0);
  const int64_t above = q == 0 ? 0 : std::max<int64_t>(s - std::max(first, k + 1) + 1, 0);
  return ramp * (first + ramp_end) / 2 + above * k;
}

std::optional<size_t> FirstNegative(std::span<const int32_t> lengths) {
  int32_t any = 0;
  for (int32_t length : lengths) any |= length;
  if (any >= 0) return std::nullopt;
  return std::find_if(lengths.begin(), lengths.end(), [](int32_t length) { return length < 0; }) - lengths.begin();
}

int64_t Sum(std::span<const int32_t> lengths) {
  int64_t sum = 0;
  for (int32_t length : lengths) sum += length;
  return sum;
}

int64_t LargestValue(Output output, const RequestSpec& spec, std::span<const int32_t> extend_seq_lens,
                     std::span<const int32_t> seq_lens) {
  int64_t largest = 0;
  switch (output) {
    case Output::kCuSeqlensQ:
      return Sum(extend_seq_lens);
    case Output::kCuSeqlensK:
      return Sum(seq_lens);
    case Output::kNsaCuSeqlensK:
      for (size_t b = 0; b < seq_lens.size(); ++b) largest += NsaTokens(spec, extend_seq_lens[b], seq_lens[b]);
      return largest;
    case Output::kKs:
      return LargestStart(extend_seq_lens, seq_lens, /*plus_length=*/false);
    case Output::kKe:
      return LargestStart(extend_seq_lens, seq_lens, /*plus_length=*/true);
    case Output::kSeqlensExpanded:
    case Output::kNsaCacheSeqlens:
    case Output::kPositions:
      // Each lies within its sequence's length, an int32 itself.
      return seq_lens.empty() ? 0 : *std::max_element(seq_lens.begin(), seq_lens.end());
    case Output::kTokenToBatchIdx:
      return std::max<int64_t>(static_cast<int64_t>(seq_lens.size()) - 1, 0);
  }
  return largest;
}

}  // namespace nsa::metadata::kernels
