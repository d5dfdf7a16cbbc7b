// What the kernels will read, needing no device.
#include "kernels/cuda/lay_out.h"

#include <gtest/gtest.h>

#include <deque>
#include <utility>
#include <vector>

namespace nsa::metadata::kernels::cuda {
namespace {

class LayOutTest : public ::testing::Test {
 protected:
  void Add(OutputSet outputs, std::vector<int32_t> q, std::vector<int32_t> s) {
    int64_t total_tokens = 0;
    for (int32_t length : q) total_tokens += length;
    const auto& [own_q, own_s] = lengths_.emplace_back(std::move(q), std::move(s));
    ASSERT_TRUE(batch_.Add({.nsa_index_topk = 4, .outputs = outputs}, own_q, own_s, total_tokens, {}));
  }
  void LayOutAll() {
    size_ = *SizeOf(batch_);
    memory_.resize(BatchLayout(size_).bytes / sizeof(uint64_t));
    LayOut(batch_, size_, reinterpret_cast<unsigned char*>(memory_.data()));
  }
  template <typename T>
  const T* At(size_t offset) const {
    return reinterpret_cast<const T*>(reinterpret_cast<const unsigned char*>(memory_.data()) + offset);
  }
  template <typename T>
  std::vector<int32_t> Numbers(size_t offset, int64_t count) const {
    return {At<T>(offset), At<T>(offset) + count};
  }

  std::deque<std::pair<std::vector<int32_t>, std::vector<int32_t>>> lengths_;
  RequestBatch batch_{/*max_sequences=*/100, /*max_requests=*/10};
  BatchSize size_;
  std::vector<uint64_t> memory_;
};

constexpr OutputSet kTwo = {Output::kSeqlensExpanded, Output::kNsaCacheSeqlens};

TEST_F(LayOutTest, RequestsBeginAtTokensThatFourMayBeWrittenFrom) {
  Add(kTwo, {3, 2}, {10, 4});
  Add(kTwo, {1}, {7});
  Add(kTwo, {}, {});
  Add(kTwo, {4, 0, 1}, {8, 9, 10});
  LayOutAll();
  const BatchLayout layout(size_);
  EXPECT_EQ(Numbers<int32_t>(layout.first_tokens, 7), (std::vector<int32_t>{0, 3, 8, 12, 16, 16, 17}));
  EXPECT_EQ(Numbers<RequestIndex>(layout.request_of, 6), (std::vector<int32_t>{0, 0, 1, 3, 3, 3}));
  EXPECT_EQ(Numbers<int32_t>(layout.seq_lens, 6), (std::vector<int32_t>{10, 4, 7, 8, 9, 10}));
  EXPECT_EQ(At<DeviceRequest>(layout.requests)[0].end_token, 5);
  EXPECT_EQ(At<DeviceRequest>(layout.requests)[2].end_token, 12);
  EXPECT_EQ(At<DeviceRequest>(layout.requests)[3].first_token, 12);
  EXPECT_EQ(At<DeviceRequest>(layout.requests)[3].first_sequence, 3);
  EXPECT_EQ(size_.num_tokens, 17);
}

TEST_F(LayOutTest, OneRequestOfTwoOutputsTakesNoMoreThanItsLengths) {
  Add(kTwo, {3, 2, 1, 1, 1}, {10, 4, 5, 6, 7});
  LayOutAll();
  EXPECT_TRUE(size_.first_two);
  EXPECT_EQ(BatchLayout(size_).bytes, sizeof(DeviceRequest) + (6 + 6) * sizeof(int32_t));
}

TEST_F(LayOutTest, SumsBeginAnewWithEachRequest) {
  Add(kTwo, {1}, {100});
  Add({Output::kKs, Output::kNsaCuSeqlensK}, {3, 2}, {10, 3});
  Add({Output::kKs}, {1, 1}, {5, 6});
  LayOutAll();
  EXPECT_FALSE(size_.first_two);
  const SumsBefore* sums = At<SumsBefore>(BatchLayout(size_).sums_before);
  EXPECT_EQ(sums[1].k, 0u);
  EXPECT_EQ(sums[2].k, 10u);
  EXPECT_EQ(sums[2].nsa, 12u) << "three tokens of min(10, 4)";
  EXPECT_EQ(sums[3].k, 0u);
  EXPECT_EQ(sums[4].k, 5u);
}

TEST_F(LayOutTest, RefusesMoreTokensThanItsNumbersHold) {
  const std::vector<int32_t> lengths(100);
  ASSERT_TRUE(batch_.Add({.outputs = kTwo}, lengths, lengths, INT32_MAX, {}));
  EXPECT_TRUE(SizeOf(batch_).ok());
  Add(kTwo, {}, {});
  const absl::Status status = SizeOf(batch_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
}

}  // namespace
}  // namespace nsa::metadata::kernels::cuda
