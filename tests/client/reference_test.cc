#include "client/reference.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "client/outputs.h"

namespace nsa::metadata::client {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

// Expands with every output.
v1::ExpandResponse ReferenceOf(v1::SequenceMode mode, const std::vector<int32_t>& extend_seq_lens,
                               const std::vector<int32_t>& seq_lens, int32_t nsa_index_topk) {
  Request request(mode);
  request.extend_seq_lens = extend_seq_lens;
  request.seq_lens = seq_lens;
  request.nsa_index_topk = nsa_index_topk;
  request.request_id = 7;
  for (const OutputField& field : AllOutputs()) request.outputs.push_back(field.output);
  return Reference(request);
}

TEST(ReferenceTest, CausalLetsATokenSeeWhatLiesBeforeItAndItself) {
  const v1::ExpandResponse reply = ReferenceOf(v1::SEQUENCE_MODE_CAUSAL, {3, 2}, {10, 4}, 9);
  EXPECT_THAT(reply.seqlens_expanded(), ElementsAre(8, 9, 10, 3, 4));
  EXPECT_THAT(reply.nsa_cache_seqlens(), ElementsAre(8, 9, 9, 3, 4));
  EXPECT_THAT(reply.token_to_batch_idx(), ElementsAre(0, 0, 0, 1, 1));
  EXPECT_THAT(reply.positions(), ElementsAre(7, 8, 9, 2, 3));
  EXPECT_THAT(reply.cu_seqlens_q(), ElementsAre(0, 3, 5));
  EXPECT_THAT(reply.cu_seqlens_k(), ElementsAre(0, 10, 14));
  EXPECT_THAT(reply.nsa_cu_seqlens_k(), ElementsAre(0, 8, 17, 26, 29, 33));
  EXPECT_THAT(reply.ks(), ElementsAre(0, 0, 0, 10, 10));
  EXPECT_THAT(reply.ke(), ElementsAre(8, 9, 10, 13, 14));
  EXPECT_EQ(reply.total_tokens(), 5);
  EXPECT_EQ(reply.request_id(), 7);
  EXPECT_EQ(reply.mode(), v1::SEQUENCE_MODE_CAUSAL);
}

TEST(ReferenceTest, RepeatLetsEveryTokenSeeTheWholeSequence) {
  const v1::ExpandResponse reply = ReferenceOf(v1::SEQUENCE_MODE_REPEAT, {3, 2}, {10, 4}, 8);
  EXPECT_THAT(reply.seqlens_expanded(), ElementsAre(10, 10, 10, 4, 4));
  EXPECT_THAT(reply.nsa_cache_seqlens(), ElementsAre(8, 8, 8, 4, 4));
  EXPECT_THAT(reply.positions(), ElementsAre(7, 8, 9, 2, 3));
  EXPECT_THAT(reply.ke(), ElementsAre(10, 10, 10, 14, 14));
}

TEST(ReferenceTest, ASequenceWithoutTokensCountsInTheSumsOnly) {
  const v1::ExpandResponse reply = ReferenceOf(v1::SEQUENCE_MODE_CAUSAL, {3, 1, 4, 0}, {10, 7, 12, 0}, 2048);
  EXPECT_THAT(reply.seqlens_expanded(), ElementsAre(8, 9, 10, 7, 9, 10, 11, 12));
  EXPECT_THAT(reply.token_to_batch_idx(), ElementsAre(0, 0, 0, 1, 2, 2, 2, 2));
  EXPECT_THAT(reply.cu_seqlens_q(), ElementsAre(0, 3, 4, 8, 8));
  EXPECT_THAT(reply.cu_seqlens_k(), ElementsAre(0, 10, 17, 29, 29));
}

TEST(ReferenceTest, ASequenceShorterThanItsExtensionIsClampedAtZeroInItsLengthsOnly) {
  const v1::ExpandResponse reply = ReferenceOf(v1::SEQUENCE_MODE_CAUSAL, {4}, {2}, 2048);
  EXPECT_THAT(reply.seqlens_expanded(), ElementsAre(0, 0, 1, 2));
  EXPECT_THAT(reply.positions(), ElementsAre(-2, -1, 0, 1));
}

TEST(ReferenceTest, AnEmptyBatchHasTheZeroOfItsRunningSums) {
  const v1::ExpandResponse reply = ReferenceOf(v1::SEQUENCE_MODE_CAUSAL, {}, {}, 2048);
  EXPECT_THAT(reply.seqlens_expanded(), IsEmpty());
  EXPECT_THAT(reply.cu_seqlens_q(), ElementsAre(0));
  EXPECT_THAT(reply.cu_seqlens_k(), ElementsAre(0));
  EXPECT_THAT(reply.nsa_cu_seqlens_k(), ElementsAre(0));
}

TEST(ReferenceTest, WithoutAListTheFirstTwoOutputsAreGiven) {
  const std::vector<int32_t> extend_seq_lens = {1}, seq_lens = {5};
  Request request(v1::SEQUENCE_MODE_CAUSAL);
  request.extend_seq_lens = extend_seq_lens;
  request.seq_lens = seq_lens;
  request.nsa_index_topk = 3;
  const v1::ExpandResponse reply = Reference(request);
  EXPECT_THAT(reply.seqlens_expanded(), ElementsAre(5));
  EXPECT_THAT(reply.nsa_cache_seqlens(), ElementsAre(3));
  EXPECT_THAT(reply.positions(), IsEmpty());
  EXPECT_THAT(reply.cu_seqlens_q(), IsEmpty());
}

TEST(ReferenceTest, UnspecifiedModeIsAnsweredAsRepeat) {
  const v1::ExpandResponse reply = ReferenceOf(v1::SEQUENCE_MODE_UNSPECIFIED, {2}, {5}, 2048);
  EXPECT_EQ(reply.mode(), v1::SEQUENCE_MODE_REPEAT);
  EXPECT_THAT(reply.seqlens_expanded(), ElementsAre(5, 5));
}

TEST(FirstDifferenceTest, IsEmptyForEqualRepliesWhateverTheirTiming) {
  const v1::ExpandResponse want = ReferenceOf(v1::SEQUENCE_MODE_CAUSAL, {3, 2}, {10, 4}, 2048);
  v1::ExpandResponse got = want;
  got.mutable_timing()->set_queue_ns(5);
  EXPECT_EQ(FirstDifference(got, want), "");
}

TEST(FirstDifferenceTest, NamesOutputIndexAndBothValues) {
  const v1::ExpandResponse want = ReferenceOf(v1::SEQUENCE_MODE_CAUSAL, {3, 2}, {10, 4}, 2048);
  v1::ExpandResponse got = want;
  got.set_positions(3, -1);
  got.set_ke(0, 99);
  EXPECT_EQ(FirstDifference(got, want), "positions[3]: got -1, want 2");
}

TEST(FirstDifferenceTest, NamesASizeThatDiffers) {
  const v1::ExpandResponse want = ReferenceOf(v1::SEQUENCE_MODE_CAUSAL, {3, 2}, {10, 4}, 2048);
  v1::ExpandResponse got = want;
  got.mutable_ks()->RemoveLast();
  EXPECT_EQ(FirstDifference(got, want), "ks: got 4 entries, want 5");
}

TEST(FirstDifferenceTest, NamesAReplyToAnotherRequest) {
  const v1::ExpandResponse want = ReferenceOf(v1::SEQUENCE_MODE_CAUSAL, {3, 2}, {10, 4}, 2048);
  v1::ExpandResponse got = want;
  got.set_request_id(8);
  EXPECT_EQ(FirstDifference(got, want), "request_id: got 8, want 7");
  got = want;
  got.set_mode(v1::SEQUENCE_MODE_REPEAT);
  EXPECT_EQ(FirstDifference(got, want), "mode: got SEQUENCE_MODE_REPEAT, want SEQUENCE_MODE_CAUSAL");
}

}  // namespace
}  // namespace nsa::metadata::client
