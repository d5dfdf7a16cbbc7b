#include "client/chunks.h"

#include <gtest/gtest.h>

#include "absl/status/statusor.h"
#include "client/outputs.h"
#include "tests/client/fake_server.h"

namespace nsa::metadata::client {
namespace {

// 7 tokens of 4 sequences.
v1::ExpandRequest TestRequest(const std::vector<v1::Output>& outputs) {
  v1::ExpandRequest request;
  request.set_request_id(9);
  request.set_mode(v1::SEQUENCE_MODE_CAUSAL);
  request.set_nsa_index_topk(8);
  for (const int32_t length : {3, 0, 2, 2}) request.add_extend_seq_lens(length);
  for (const int32_t length : {10, 5, 4, 1}) request.add_seq_lens(length);
  for (const v1::Output output : outputs) request.add_outputs(output);
  return request;
}

std::vector<v1::Output> Everything() {
  std::vector<v1::Output> outputs;
  for (const OutputField& field : AllOutputs()) outputs.push_back(field.output);
  return outputs;
}

// What the chunks are together, or the first error.
absl::StatusOr<v1::ExpandResponse> Join(std::vector<v1::ExpandStreamResponse> messages) {
  Chunks chunks;
  for (v1::ExpandStreamResponse& message : messages) {
    if (const absl::Status status = chunks.Append(message); !status.ok()) return status;
  }
  return chunks.Take();
}

std::string ErrorOf(const std::vector<v1::ExpandStreamResponse>& messages) {
  return std::string(Join(messages).status().message());
}

TEST(ChunksTest, ChunksOfAnySizeAreTheUnaryReply) {
  for (const std::vector<v1::Output>& outputs :
       {Everything(), std::vector<v1::Output>{}, std::vector{v1::OUTPUT_NSA_CU_SEQLENS_K},
        std::vector{v1::OUTPUT_KE, v1::OUTPUT_CU_SEQLENS_K}}) {
    const v1::ExpandResponse whole = ReferenceOf(TestRequest(outputs));
    for (const int64_t tokens : {0, 1, 2, 3, 6, 7, 8}) {
      const absl::StatusOr<v1::ExpandResponse> joined = Join(ChunksOf(whole, tokens));
      ASSERT_TRUE(joined.ok()) << joined.status();
      EXPECT_EQ(joined->SerializeAsString(), whole.SerializeAsString()) << "in chunks of " << tokens << " tokens";
    }
  }
}

TEST(ChunksTest, AnExpansionWithoutTokensIsOnePiece) {
  v1::ExpandRequest request = TestRequest(Everything());
  request.clear_extend_seq_lens();
  request.clear_seq_lens();
  const v1::ExpandResponse whole = ReferenceOf(request);
  const absl::StatusOr<v1::ExpandResponse> joined = Join(ChunksOf(whole, 0));
  ASSERT_TRUE(joined.ok()) << joined.status();
  EXPECT_EQ(joined->SerializeAsString(), whole.SerializeAsString());
}

TEST(ChunksTest, SumsByThemselvesMayComeBeforeTheTokens) {
  const v1::ExpandResponse whole = ReferenceOf(TestRequest({v1::OUTPUT_CU_SEQLENS_Q, v1::OUTPUT_KS}));
  std::vector<v1::ExpandStreamResponse> messages = ChunksOf(whole, 4);
  messages.insert(messages.begin(), messages[0]);
  messages[0].mutable_expansion()->clear_ks();
  messages[1].mutable_expansion()->clear_cu_seqlens_q();
  const absl::StatusOr<v1::ExpandResponse> joined = Join(messages);
  ASSERT_TRUE(joined.ok()) << joined.status();
  EXPECT_EQ(joined->SerializeAsString(), whole.SerializeAsString());
}

TEST(ChunksTest, TimingComesWithWhicheverChunkHasIt) {
  const v1::ExpandResponse whole = ReferenceOf(TestRequest({}));
  for (const size_t chunk : {0, 1, 2}) {
    std::vector<v1::ExpandStreamResponse> messages = ChunksOf(whole, 3);
    ASSERT_EQ(messages.size(), 3u);
    messages[chunk].mutable_expansion()->mutable_timing()->set_queue_ns(5);
    const absl::StatusOr<v1::ExpandResponse> joined = Join(messages);
    ASSERT_TRUE(joined.ok()) << joined.status();
    EXPECT_EQ(joined->timing().queue_ns(), 5u) << "in chunk " << chunk;
  }
}

TEST(ChunksTest, RefusesAChunkThatDoesNotFollow) {
  std::vector<v1::ExpandStreamResponse> messages = ChunksOf(ReferenceOf(TestRequest({})), 2);
  std::swap(messages[1], messages[2]);
  EXPECT_EQ(ErrorOf(messages), "the server's chunks of request_id 9 don't fit: first_token 4, want 2");
  messages.erase(messages.begin(), messages.begin() + 1);
  EXPECT_EQ(ErrorOf(messages), "the server's chunks of request_id 9 don't fit: first_token 4, want 0");
}

TEST(ChunksTest, RefusesArraysThatDifferInTokens) {
  const std::vector<v1::ExpandStreamResponse> messages = ChunksOf(ReferenceOf(TestRequest(Everything())), 4);
  std::vector<v1::ExpandStreamResponse> short_ks = messages;
  short_ks[1].mutable_expansion()->mutable_ks()->RemoveLast();
  EXPECT_EQ(ErrorOf(short_ks), "the server's chunks of request_id 9 don't fit: ks 6, want 7");
  std::vector<v1::ExpandStreamResponse> short_sum = messages;
  short_sum[1].mutable_expansion()->mutable_nsa_cu_seqlens_k()->RemoveLast();
  EXPECT_EQ(ErrorOf(short_sum), "the server's chunks of request_id 9 don't fit: nsa_cu_seqlens_k 7, want 8");
}

TEST(ChunksTest, RefusesAWholeThatIsNotAllTokens) {
  std::vector<v1::ExpandStreamResponse> messages = ChunksOf(ReferenceOf(TestRequest({})), 4);
  std::vector<v1::ExpandStreamResponse> cut = {messages[0]};
  cut[0].set_last_chunk(true);
  EXPECT_EQ(ErrorOf(cut), "the server's chunks of request_id 9 don't fit: tokens 4, want 7");
  for (v1::ExpandStreamResponse& message : messages) message.mutable_expansion()->set_total_tokens(5);
  EXPECT_EQ(ErrorOf(messages), "the server's chunks of request_id 9 don't fit: tokens 7, want 5");
}

}  // namespace
}  // namespace nsa::metadata::client
