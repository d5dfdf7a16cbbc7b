#include "server/lengths_budget.h"

#include <gtest/gtest.h>

#include <thread>
#include <utility>
#include <vector>

namespace nsa::metadata::server {
namespace {

constexpr Account kOne = 1;
constexpr Account kOther = 2;

TEST(LengthsBudgetTest, NeverGivesMoreThanItHas) {
  LengthsBudget budget(100, /*caller_share=*/1);
  LengthsPermit most = budget.Reserve(60, kOne);
  ASSERT_TRUE(most);
  EXPECT_FALSE(budget.Reserve(41, kOther));
  EXPECT_FALSE(budget.OverShare(41, kOther)) << "it is the budget that has no room";
  const LengthsPermit rest = budget.Reserve(40, kOther);
  EXPECT_TRUE(rest);
  EXPECT_EQ(budget.bytes_in_use(), 100);
  most = LengthsPermit();
  EXPECT_EQ(budget.bytes_in_use(), 40);
}

TEST(LengthsBudgetTest, APermitThatIsMovedIsGivenBackOnce) {
  LengthsBudget budget(100, /*caller_share=*/1);
  LengthsPermit first = budget.Reserve(10, kOne);
  {
    const LengthsPermit second = std::move(first);
    EXPECT_EQ(budget.bytes_in_use(), 10);
  }
  EXPECT_EQ(budget.bytes_in_use(), 0);
}

TEST(LengthsBudgetTest, AnAccountHasItsShareOnceHalfIsInUse) {
  LengthsBudget budget(100, /*caller_share=*/0.25);
  const LengthsPermit half = budget.Reserve(51, kOne);
  ASSERT_TRUE(half) << "no share binds while half is free";
  EXPECT_FALSE(budget.Reserve(1, kOne));
  EXPECT_TRUE(budget.OverShare(1, kOne));
  const LengthsPermit share = budget.Reserve(25, kOther);
  EXPECT_TRUE(share);
  EXPECT_FALSE(budget.Reserve(1, kOther));
  EXPECT_TRUE(budget.Reserve(24, kNoAccount)) << "nobody's requests have no share";
}

TEST(LengthsBudgetTest, WhatAStreamHasReadHasRoomWhateverTheShare) {
  LengthsBudget budget(100, /*caller_share=*/0.25);
  const LengthsPermit half = budget.Reserve(51, kOne);
  const LengthsPermit read = budget.ReserveRead(40, kOne);
  EXPECT_TRUE(read);
  EXPECT_FALSE(budget.ReserveRead(10, kOne)) << "it would pass the budget";
  EXPECT_EQ(budget.bytes_in_use(), 91);
}

TEST(LengthsBudgetTest, StreamsReadOnWhileThereIsRoomForWhatTheyMayRead) {
  LengthsBudget budget(100, /*caller_share=*/0.25);
  const LengthsPermit half = budget.Reserve(50, kOne);
  EXPECT_TRUE(budget.MayReadOn(kOne));
  const LengthsPermit more = budget.Reserve(12, kOther);
  EXPECT_FALSE(budget.MayReadOn(kOne)) << "it has far more than its share";
  EXPECT_TRUE(budget.MayReadOn(kOther)) << "it has less than half of its share";
  const LengthsPermit most = budget.Reserve(2, kOther);
  EXPECT_FALSE(budget.MayReadOn(kOther));
}

TEST(LengthsBudgetTest, ThreadsTogetherPassNoBound) {
  LengthsBudget budget(1'000, /*caller_share=*/1);
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&] {
      for (int i = 0; i < 10'000; ++i) {
        const LengthsPermit permit = budget.Reserve(300, kOne);
        EXPECT_LE(budget.bytes_in_use(), 1'000);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(budget.bytes_in_use(), 0);
}

}  // namespace
}  // namespace nsa::metadata::server
