#include "kernels/launch_plan.h"

#include <gtest/gtest.h>

namespace nsa::metadata::kernels {
namespace {

Kernel Choose(KernelChoice choice, int64_t num_sequences, int64_t total_tokens) {
  return ChooseKernel({.choice = choice}, {.num_sequences = num_sequences, .total_tokens = total_tokens});
}

TEST(LaunchPlanTest, AThresholdDividesLinearFromBinary) {
  const LaunchPlan plan{.choice = KernelChoice::kThreshold, .threshold = 16};
  EXPECT_EQ(ChooseKernel(plan, {.num_sequences = 16, .total_tokens = 1'000'000}), Kernel::kLinear);
  EXPECT_EQ(ChooseKernel(plan, {.num_sequences = 17, .total_tokens = 17}), Kernel::kBinary);
}

TEST(LaunchPlanTest, AForcedKernelIsTakenForEveryShape) {
  for (int64_t num_sequences : {0, 1, 1'000}) {
    for (int64_t total_tokens : {0, 1'000'000}) {
      EXPECT_EQ(Choose(KernelChoice::kLinear, num_sequences, total_tokens), Kernel::kLinear);
      EXPECT_EQ(Choose(KernelChoice::kBinary, num_sequences, total_tokens), Kernel::kBinary);
      EXPECT_EQ(Choose(KernelChoice::kRows, num_sequences, total_tokens), Kernel::kRows);
      EXPECT_EQ(Choose(KernelChoice::kTile, num_sequences, total_tokens), Kernel::kTile);
    }
  }
}

TEST(LaunchPlanTest, AdaptiveLooksAtSequencesAndAtTheirMeanLength) {
  EXPECT_EQ(Choose(KernelChoice::kAdaptive, 1, 16), Kernel::kBinary);
  EXPECT_EQ(Choose(KernelChoice::kAdaptive, 64, 64 * 16), Kernel::kRows) << "short sequences";
  EXPECT_EQ(Choose(KernelChoice::kAdaptive, 64, 64 * 256), Kernel::kBinary) << "longer ones";
  EXPECT_EQ(Choose(KernelChoice::kAdaptive, 1'024, 1'024 * 4'096), Kernel::kTile) << "many tokens";
}

TEST(LaunchPlanTest, AdaptiveNeverSendsTilesAcrossTheBus) {
  for (const bool first_two : {false, true}) {
    for (int64_t num_sequences = 1; num_sequences <= 1 << 20; num_sequences *= 2) {
      for (int64_t mean = 1; mean <= 1 << 20; mean *= 2) {
        const BatchShape shape = {.num_sequences = num_sequences,
                                  .total_tokens = num_sequences * mean,
                                  .first_two = first_two,
                                  .to_host = true};
        EXPECT_NE(ChooseKernel({}, shape), Kernel::kTile) << num_sequences << " of " << mean;
      }
    }
  }
}

TEST(LaunchPlanTest, AdaptiveTakesTheLowerOfTwoEntriesForFewTokensAndItsRowsForSome) {
  // Halfway between two entries, of which the greater has tiles.
  EXPECT_EQ(ChooseKernel({}, {.num_sequences = 128, .total_tokens = 70'000, .first_two = true}), Kernel::kBinary);
  EXPECT_EQ(ChooseKernel({}, {.num_sequences = 512, .total_tokens = 70'000, .first_two = true}), Kernel::kRows);
  EXPECT_EQ(ChooseKernel({}, {.num_sequences = 8'192, .total_tokens = 263'137, .first_two = true}), Kernel::kRows);
  EXPECT_EQ(ChooseKernel({}, {.num_sequences = 512, .total_tokens = 261'946, .first_two = true}), Kernel::kTile);
  EXPECT_EQ(ChooseKernel({}, {.num_sequences = 8'192, .total_tokens = 1'053'569, .first_two = true}), Kernel::kTile);
}

TEST(LaunchPlanTest, AdaptiveHasATableOfItsOwnForMoreThanTwoOutputs) {
  for (const bool first_two : {true, false}) {
    EXPECT_EQ(ChooseKernel({}, {.num_sequences = 64, .total_tokens = 64 * 4'096, .first_two = first_two}),
              Kernel::kTile);
    EXPECT_EQ(ChooseKernel({}, {.num_sequences = 256, .total_tokens = 256 * 64, .first_two = first_two}),
              first_two ? Kernel::kRows : Kernel::kBinary);
    EXPECT_EQ(ChooseKernel({}, {.num_sequences = 1'024, .total_tokens = 1'024 * 256, .first_two = first_two}),
              Kernel::kTile);
  }
}

TEST(LaunchPlanTest, AdaptiveTakesFewBlocksWhereEachMakesTheSums) {
  const auto from_lengths = [](int64_t num_sequences, int64_t total_tokens, bool first_two = true) {
    return ChooseKernel(
        {},
        {.num_sequences = num_sequences, .total_tokens = total_tokens, .first_two = first_two, .from_lengths = true});
  };
  EXPECT_EQ(from_lengths(4'096, 16'384), Kernel::kBinary);
  EXPECT_EQ(from_lengths(4'096, 262'144), Kernel::kTile);
  EXPECT_EQ(from_lengths(4'097, 16'384), Kernel::kRows) << "beyond them a launch of its own makes them";
  EXPECT_EQ(from_lengths(3'072, 16'384, /*first_two=*/false), Kernel::kBinary);
  EXPECT_EQ(from_lengths(3'073, 16'384, /*first_two=*/false), Kernel::kRows) << "sums that more outputs need take more";
  EXPECT_EQ(from_lengths(64, 100'000), Kernel::kBinary);
  EXPECT_EQ(from_lengths(64, 240'000), Kernel::kTile);
}

TEST(LaunchPlanTest, AdaptiveTakesShapesPastItsTableAsTheNearestInIt) {
  EXPECT_EQ(Choose(KernelChoice::kAdaptive, 0, 0), Choose(KernelChoice::kAdaptive, 1, 1));
  EXPECT_EQ(Choose(KernelChoice::kAdaptive, 1, INT32_MAX), Choose(KernelChoice::kAdaptive, 1, 16'384));
  EXPECT_EQ(Choose(KernelChoice::kAdaptive, INT32_MAX, INT32_MAX), Choose(KernelChoice::kAdaptive, 65'536, 65'536));
  EXPECT_EQ(Choose(KernelChoice::kAdaptive, INT32_MAX, INT64_MAX),
            Choose(KernelChoice::kAdaptive, 65'536, int64_t{65'536} * 16'384));
}

TEST(LaunchPlanTest, KnowsEveryChoiceByName) {
  for (const char* name : {"adaptive", "threshold", "linear", "binary", "rows", "tile"})
    EXPECT_TRUE(ParseKernelChoice(name)) << name;
  EXPECT_FALSE(ParseKernelChoice("quantum"));
}

}  // namespace
}  // namespace nsa::metadata::kernels
