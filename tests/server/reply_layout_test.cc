#include "server/reply_layout.h"

#include <google/protobuf/reflection.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "tests/support/requests.h"
#include "tests/support/rpc.h"

namespace nsa::metadata::server {
namespace {

constexpr size_t kBlock = OutputPool::kBlockBytes;

std::shared_ptr<OutputPool> MakePool(size_t blocks) {
  return *OutputPool::Create(*kernels::AllocatePageable(blocks * kBlock));
}

std::string Joined(const grpc::ByteBuffer& bytes) {
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(bytes.Dump(&slices).ok());
  std::string encoded;
  for (const grpc::Slice& slice : slices) encoded.append(slice.begin(), slice.end());
  return encoded;
}

v1::ExpandResponse Parse(const grpc::ByteBuffer& bytes) {
  v1::ExpandResponse response;
  EXPECT_TRUE(response.ParseFromString(Joined(bytes)));
  return response;
}

std::vector<int32_t> Array(const v1::ExpandResponse& response, kernels::Output output) {
  const google::protobuf::Reflection& reflection = *response.GetReflection();
  const auto* field = response.GetDescriptor()->FindFieldByName(kernels::OutputName(output));
  const auto values = reflection.GetRepeatedFieldRef<int32_t>(response, field);
  return {values.begin(), values.end()};
}

v1::Timing LargestTiming() {
  v1::Timing timing;
  timing.set_parse_ns(UINT64_MAX);
  timing.set_admit_ns(UINT64_MAX);
  timing.set_queue_ns(UINT64_MAX);
  timing.set_pack_ns(UINT64_MAX);
  timing.set_device_ns(UINT64_MAX);
  timing.set_frame_ns(UINT64_MAX);
  timing.set_batch_requests(UINT32_MAX);
  timing.set_batch_tokens(UINT32_MAX);
  timing.set_backend(v1::BACKEND_CPU);
  return timing;
}

// Computes `request` into a reply and reads it back as any client would.
void ExpectRoundTrip(const testing::TestRequest& request, OutputPool& pool) {
  const auto backend = kernels::CreateCpuBackend();
  const auto lane = *backend->CreateLane({.max_sequences = 100, .max_requests = 1});
  const testing::Arrays want = testing::ReferenceArrays(request);
  const ReplyLayout layout(request.spec.outputs, static_cast<int64_t>(request.seq_lens.size()), request.total_tokens());
  const OutputPermit permit = pool.Reserve(layout.block_bytes());
  ASSERT_TRUE(permit);
  lane->batch().Clear();
  ASSERT_TRUE(lane->batch().Add(request.spec, request.extend_seq_lens, request.seq_lens, request.total_tokens(),
                                layout.Pointers(permit.data())));
  ASSERT_TRUE(lane->Expand().ok());
  const v1::Timing timing = LargestTiming();
  const ReplyScalars largest = {
      .request_id = UINT64_MAX, .total_tokens = -1, .mode = v1::SEQUENCE_MODE_CAUSAL, .timing = &timing};
  const grpc::ByteBuffer reply = layout.Frame(largest, permit, pool).front().bytes;
  EXPECT_LE(reply.Length(), layout.wire_bytes());
  v1::ExpandResponse response = Parse(reply);
  for (kernels::Output output : kernels::kAllOutputs) {
    EXPECT_EQ(Array(response, output), want[static_cast<size_t>(output)]) << kernels::OutputName(output);
  }
  EXPECT_EQ(response.request_id(), UINT64_MAX);
  EXPECT_EQ(response.total_tokens(), -1);
  EXPECT_EQ(response.mode(), v1::SEQUENCE_MODE_CAUSAL);
  EXPECT_EQ(response.timing().frame_ns(), UINT64_MAX);
}

// The same as a ModelInferResponse, after fields of `head_bytes` bytes or so.
void ExpectInferenceRoundTrip(const testing::TestRequest& request, size_t head_bytes, OutputPool& pool) {
  const auto backend = kernels::CreateCpuBackend();
  const auto lane = *backend->CreateLane({.max_sequences = 100, .max_requests = 1});
  inference::ModelInferResponse head;
  head.set_id(std::string(head_bytes, 'i'));
  request.spec.outputs.ForEach([&](kernels::Output output) { head.add_outputs()->set_name(OutputName(output)); });
  const ReplyLayout layout(request.spec.outputs, static_cast<int64_t>(request.seq_lens.size()), request.total_tokens(),
                           Framing::kInference, head.SerializeAsString());
  const OutputPermit permit = pool.Reserve(layout.block_bytes());
  ASSERT_TRUE(permit);
  lane->batch().Clear();
  ASSERT_TRUE(lane->batch().Add(request.spec, request.extend_seq_lens, request.seq_lens, request.total_tokens(),
                                layout.Pointers(permit.data())));
  ASSERT_TRUE(lane->Expand().ok());
  const grpc::ByteBuffer reply = layout.Frame({}, permit, pool).front().bytes;
  EXPECT_EQ(reply.Length(), layout.wire_bytes());
  inference::ModelInferResponse response;
  ASSERT_TRUE(response.ParseFromString(Joined(reply)));
  EXPECT_EQ(response.id(), head.id());
  ASSERT_EQ(response.raw_output_contents_size(), response.outputs_size()) << "one entry an output, empty ones too";
  EXPECT_EQ(testing::ToArrays(testing::ToExpandResponse(response)), testing::ReferenceArrays(request));
}

TEST(ReplyLayoutTest, InferenceRepliesReadBackAsWhatWasComputed) {
  const auto pool = MakePool(64);
  std::mt19937_64 random(7);
  for (size_t i = 0; i < 300; ++i) ExpectInferenceRoundTrip(testing::RandomRequest(random), 4 * i, *pool);
  EXPECT_EQ(pool->blocks_in_use(), 0u);
  const OutputPermit others = pool->Reserve(50 * kBlock);
  for (size_t i = 0; i < 100; ++i) ExpectInferenceRoundTrip(testing::RandomRequest(random, 8), 4 * i, *pool);
  EXPECT_EQ(pool->blocks_in_use(), 50u) << "copies, of a scarce pool";
}

TEST(ReplyLayoutTest, RepliesReadBackAsWhatWasComputed) {
  const auto pool = MakePool(64);
  std::mt19937_64 random(5);
  for (int i = 0; i < 500; ++i) ExpectRoundTrip(testing::RandomRequest(random), *pool);
  EXPECT_EQ(pool->blocks_in_use(), 0u);
}

TEST(ReplyLayoutTest, RepliesOfAScarcePoolAreCopiesAndReadBackTheSame) {
  const auto pool = MakePool(64);
  const OutputPermit others = pool->Reserve(50 * kBlock);
  std::mt19937_64 random(6);
  for (int i = 0; i < 100; ++i) ExpectRoundTrip(testing::RandomRequest(random, 8), *pool);
  EXPECT_EQ(pool->blocks_in_use(), 50u);
}

TEST(ReplyLayoutTest, ACopyOfAScarcePoolLetsTheBlocksGo) {
  const auto pool = MakePool(64);
  const OutputPermit others = pool->Reserve(52 * kBlock);
  const ReplyLayout layout({kernels::Output::kKs}, 1, 4);
  grpc::ByteBuffer reply;
  {
    const OutputPermit permit = pool->Reserve(3 * kBlock);
    reply = layout.Frame({}, permit, *pool).front().bytes;
  }
  EXPECT_EQ(pool->blocks_in_use(), 53u);  // 16 bytes of heap count as one block
}

TEST(ReplyLayoutTest, ArraysAreAlignedForWideStores) {
  const ReplyLayout layout(kernels::OutputSet::All(), 3, 7);
  alignas(128) static uint8_t base[8192];
  for (const int32_t* pointer : layout.Pointers(base)) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(pointer) % 128, 0u);
  }
}

TEST(ReplyLayoutTest, AnOutputThatIsNotAskedHasNoPlace) {
  const ReplyLayout layout({kernels::Output::kPositions}, 3, 7);
  uint8_t base[512];
  const kernels::OutputPointers pointers = layout.Pointers(base);
  for (kernels::Output output : kernels::kAllOutputs) {
    EXPECT_EQ(pointers[static_cast<size_t>(output)] != nullptr, output == kernels::Output::kPositions);
  }
}

}  // namespace
}  // namespace nsa::metadata::server
