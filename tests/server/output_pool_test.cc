#include "server/output_pool.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace nsa::metadata::server {
namespace {

constexpr size_t kBlock = OutputPool::kBlockBytes;

std::shared_ptr<OutputPool> MakePool(size_t blocks) {
  return *OutputPool::Create(*kernels::AllocatePageable(blocks * kBlock));
}

TEST(OutputPoolTest, RefusesMemoryThatIsNoWholeNumberOfBlocks) {
  EXPECT_FALSE(OutputPool::Create(*kernels::AllocatePageable(kBlock + 4096)).ok());
}

TEST(OutputPoolTest, CountsWholeBlocks) {
  const auto pool = MakePool(8);
  const OutputPermit one = pool->Reserve(1);
  EXPECT_EQ(pool->blocks_in_use(), 1u);
  const OutputPermit two = pool->Reserve(kBlock + 1);
  EXPECT_EQ(pool->blocks_in_use(), 3u);
}

TEST(OutputPoolTest, NeverGivesMoreThanItHas) {
  const auto pool = MakePool(4);
  OutputPermit all = pool->Reserve(4 * kBlock);
  ASSERT_TRUE(all);
  EXPECT_FALSE(pool->Reserve(1));
  all = OutputPermit();
  EXPECT_EQ(pool->blocks_in_use(), 0u);
  EXPECT_TRUE(pool->Reserve(4 * kBlock));
  EXPECT_EQ(pool->blocks_high_water(), 4u);
  EXPECT_FALSE(pool->Reserve(5 * kBlock));
}

TEST(OutputPoolTest, HoldsBlocksUntilTheLastSliceIsGone) {
  const auto pool = MakePool(2);
  OutputPermit permit = pool->Reserve(kBlock);
  grpc::Slice first = permit.Slice(0, 10);
  grpc::Slice second = permit.Slice(10, 10);
  permit = OutputPermit();
  EXPECT_EQ(pool->blocks_in_use(), 1u);
  first = grpc::Slice();
  EXPECT_EQ(pool->blocks_in_use(), 1u);
  second = grpc::Slice();
  EXPECT_EQ(pool->blocks_in_use(), 0u);
}

TEST(OutputPoolTest, OutlivesItsOwnerWhileASliceIsSent) {
  auto pool = MakePool(1);
  OutputPermit permit = pool->Reserve(kBlock);
  memcpy(permit.data(), "sent", 4);
  const grpc::Slice slice = permit.Slice(0, 4);
  permit = OutputPermit();
  pool.reset();
  EXPECT_EQ(std::string(slice.begin(), slice.end()), "sent");
}

TEST(OutputPoolTest, CountsHeapCopiesInTheSameBudget) {
  const auto pool = MakePool(4);
  OutputPermit permit = pool->Reserve(3 * kBlock);
  memcpy(permit.data(), "ab", 2);
  std::optional<grpc::Slice> copy;
  {
    const std::vector<grpc::Slice> parts = {permit.Slice(0, 1), permit.Slice(1, 1)};
    copy = pool->CopyToHeap(parts, kNoAccount);
  }
  ASSERT_TRUE(copy.has_value());
  EXPECT_EQ(std::string(copy->begin(), copy->end()), "ab");
  EXPECT_EQ(pool->blocks_in_use(), 4u);
  EXPECT_FALSE(pool->Reserve(1));
  permit = OutputPermit();
  EXPECT_EQ(pool->blocks_in_use(), 1u);
  copy.reset();
  EXPECT_EQ(pool->blocks_in_use(), 0u);
}

TEST(OutputPoolTest, DoesNotCopyPastTheBudget) {
  const auto pool = MakePool(2);
  const OutputPermit permit = pool->Reserve(2 * kBlock);
  const std::vector<grpc::Slice> parts = {permit.Slice(0, 1)};
  EXPECT_FALSE(pool->CopyToHeap(parts, kNoAccount).has_value());
  EXPECT_EQ(pool->blocks_high_water(), 2u);
}

TEST(OutputPoolTest, IsScarceWhenFewerThanAQuarterOfItsBlocksAreFree) {
  const auto pool = MakePool(8);
  const OutputPermit six = pool->Reserve(6 * kBlock);
  EXPECT_FALSE(pool->scarce());
  const OutputPermit seven = pool->Reserve(kBlock);
  EXPECT_TRUE(pool->scarce());
}

TEST(OutputPoolTest, HoldsAnAccountToItsShareOnceMoreThanHalfIsInUse) {
  constexpr Account kOne = 1;
  constexpr Account kOther = 2;
  const auto pool =
      *OutputPool::Create(*kernels::AllocatePageable(16 * kBlock), {.spare = std::nullopt, .caller_share = 0.25});
  std::vector<OutputPermit> permits;
  for (int i = 0; i < 9; ++i) {
    permits.push_back(pool->Reserve(1, kOne));
    EXPECT_TRUE(permits.back()) << "half of it was free for block " << i;
  }
  EXPECT_FALSE(pool->Reserve(1, kOne));
  EXPECT_TRUE(pool->OverShare(1, kOne));
  EXPECT_FALSE(pool->OverShare(4 * kBlock, kOther));
  EXPECT_TRUE(pool->OverShare(5 * kBlock, kOther));
  EXPECT_FALSE(pool->OverShare(8 * kBlock, kOther)) << "it is the budget that has no room for that";
  const OutputPermit others = pool->Reserve(4 * kBlock, kOther);
  EXPECT_TRUE(others);
  EXPECT_FALSE(pool->Reserve(1, kOther));
  EXPECT_TRUE(pool->Reserve(1, kNoAccount)) << "no share is nobody's";
  permits.clear();
  EXPECT_TRUE(pool->Reserve(1, kOne)) << "less than half is in use again";
}

TEST(OutputPoolTest, ChargesHeapCopiesToTheirAccount) {
  constexpr Account kOne = 1;
  const auto pool =
      *OutputPool::Create(*kernels::AllocatePageable(8 * kBlock), {.spare = std::nullopt, .caller_share = 0.25});
  OutputPermit permit = pool->Reserve(5 * kBlock, kOne);
  std::optional<grpc::Slice> copy;
  {
    const std::vector<grpc::Slice> parts = {permit.Slice(0, 2 * kBlock)};
    copy = pool->CopyToHeap(parts, permit.account());
  }
  permit = OutputPermit();
  const OutputPermit others = pool->Reserve(3 * kBlock, 2);
  EXPECT_TRUE(pool->OverShare(1, kOne)) << "its copy holds all of its share";
  copy.reset();
  const OutputPermit more = pool->Reserve(2 * kBlock);
  EXPECT_FALSE(pool->OverShare(1, kOne));
}

TEST(OutputPoolTest, HandsOutNoBlockOfMemoryThatItHasLeft) {
  kernels::HostBuffer memory = *kernels::AllocatePageable(4 * kBlock);
  const uint8_t* const begin = memory.data();
  const auto pool =
      *OutputPool::Create(std::move(memory), {.spare = *kernels::AllocatePageable(4 * kBlock), .caller_share = 1});
  const auto is_old = [&](const OutputPermit& permit) {
    return permit.data() >= begin && permit.data() < begin + 4 * kBlock;
  };
  OutputPermit failed = pool->Reserve(2 * kBlock);
  OutputPermit sent = pool->Reserve(kBlock);
  EXPECT_TRUE(is_old(failed));
  memcpy(sent.data(), "sent", 4);
  std::optional<grpc::Slice> slice = sent.Slice(0, 4);
  sent = OutputPermit();

  pool->LeaveMemory();
  pool->Renew(failed);
  ASSERT_TRUE(failed);
  EXPECT_FALSE(is_old(failed));
  EXPECT_EQ(std::string(slice->begin(), slice->end()), "sent") << "what is on its way stays";
  EXPECT_EQ(pool->blocks_in_use(), 3u) << "old and new count in one budget";
  EXPECT_FALSE(pool->Reserve(2 * kBlock));
  slice.reset();
  failed = OutputPermit();
  EXPECT_EQ(pool->blocks_in_use(), 0u);
  const OutputPermit all = pool->Reserve(4 * kBlock);
  ASSERT_TRUE(all);
  EXPECT_FALSE(is_old(all));
}

TEST(OutputPoolTest, FindsARunBetweenOthers) {
  const auto pool = MakePool(200);  // more than a word of the bitmap, and not a whole number of them
  std::vector<OutputPermit> permits;
  for (int i = 0; i < 200; ++i) permits.push_back(pool->Reserve(1));
  EXPECT_FALSE(pool->Reserve(1));
  for (int i = 60; i < 135; ++i) permits[i] = OutputPermit();
  EXPECT_TRUE(pool->Reserve(75 * kBlock));
  EXPECT_FALSE(pool->Reserve(76 * kBlock));
}

TEST(OutputPoolTest, GivesEachHolderItsOwnMemoryUnderConcurrentUse) {
  const auto pool = MakePool(64);
  std::vector<std::thread> threads;
  for (int id = 1; id <= 4; ++id) {
    threads.emplace_back([&pool, id] {
      std::mt19937_64 random(id);
      for (int i = 0; i < 2'000; ++i) {
        const size_t bytes = 1 + random() % (6 * kBlock);
        OutputPermit permit = pool->Reserve(bytes);
        if (!permit) continue;
        memset(permit.data(), id, bytes);
        for (size_t at = 0; at < bytes; at += 997) {
          ASSERT_EQ(permit.data()[at], id) << "another holder wrote here";
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool->blocks_in_use(), 0u);
  EXPECT_LE(pool->blocks_high_water(), 64u);
}

}  // namespace
}  // namespace nsa::metadata::server
