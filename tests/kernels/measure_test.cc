#include "kernels/measure.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/support/golden.h"
#include "tests/support/requests.h"

namespace nsa::metadata::kernels {
namespace {

TEST(MeasureTest, SaysOfEveryKnownCaseWhichOutputsPassInt32) {
  for (const testing::GoldenCase& golden : testing::GoldenCases()) {
    const RequestSpec spec{.nsa_index_topk = golden.nsa_index_topk, .mode = golden.mode, .outputs = {}};
    for (Output output : kAllOutputs) {
      const bool fits = LargestValue(output, spec, golden.extend_seq_lens, golden.seq_lens) <= INT32_MAX;
      EXPECT_EQ(fits, golden.expected[static_cast<size_t>(output)].has_value())
          << golden.name << ": " << OutputName(output);
    }
  }
}

// The sums and starts are exact; the others need only be a bound.
TEST(MeasureTest, KnowsTheLargestSumBeforeItIsComputed) {
  std::mt19937_64 random(3);
  for (int i = 0; i < 2'000; ++i) {
    testing::TestRequest request = testing::RandomRequest(random);
    request.spec.outputs = OutputSet::All();
    const testing::Arrays arrays = testing::ReferenceArrays(request);
    for (Output output : {Output::kCuSeqlensQ, Output::kCuSeqlensK, Output::kNsaCuSeqlensK, Output::kKs, Output::kKe}) {
      const int64_t largest = LargestValue(output, request.spec, request.extend_seq_lens, request.seq_lens);
      if (largest > INT32_MAX) continue;
      const std::vector<int32_t>& array = arrays[static_cast<size_t>(output)];
      const int64_t want = array.empty() ? 0 : *std::max_element(array.begin(), array.end());
      ASSERT_EQ(largest, std::max<int64_t>(want, 0)) << OutputName(output) << ", request " << i;
    }
  }
}

TEST(MeasureTest, FindsTheFirstNegativeLength) {
  EXPECT_EQ(FirstNegative(std::vector<int32_t>{}), std::nullopt);
  EXPECT_EQ(FirstNegative(std::vector<int32_t>{0, INT32_MAX}), std::nullopt);
  EXPECT_EQ(FirstNegative(std::vector<int32_t>{4, 0, INT32_MIN, -1}), 2u);
}

TEST(MeasureTest, SumsPastInt32) { EXPECT_EQ(Sum(std::vector<int32_t>(3, INT32_MAX)), int64_t{3} * INT32_MAX); }

}  // namespace
}  // namespace nsa::metadata::kernels
