// The known answers in tests/golden/expand.jsonl.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/request_batch.h"

namespace nsa::metadata::testing {

struct GoldenCase {
  std::string name;
  std::vector<int32_t> extend_seq_lens;
  std::vector<int32_t> seq_lens;
  int32_t nsa_index_topk = 0;
  kernels::SequenceMode mode = kernels::SequenceMode::kRepeat;
  // Nothing for an output whose values pass int32: asking for it is refused.
  std::array<std::optional<std::vector<int32_t>>, kernels::kNumOutputs> expected;
};

// All cases; ends the test program when the file is missing or not understood.
const std::vector<GoldenCase>& GoldenCases();

}  // namespace nsa::metadata::testing
