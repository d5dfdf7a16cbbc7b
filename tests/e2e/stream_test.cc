// ExpandStream over the wire.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <optional>
#include <random>
#include <thread>

#include "kernels/measure.h"
#include "tests/support/gated_backend.h"
#include "tests/support/rpc.h"
#include "tests/support/running_server.h"

namespace nsa::metadata {
namespace {

using testing::Arrays;
using testing::RunningServer;
using testing::TestRequest;

v1::ExpandStreamRequest Item(uint64_t id, const TestRequest& request) {
  v1::ExpandStreamRequest item;
  *item.mutable_expand() = testing::ToProto(request);
  item.mutable_expand()->set_request_id(id);
  return item;
}

TestRequest Small(int32_t tokens = 3) {
  return {.spec = {.nsa_index_topk = 4,
                   .mode = kernels::SequenceMode::kCausal,
                   .outputs = {kernels::Output::kSeqlensExpanded, kernels::Output::kNsaCacheSeqlens}},
          .extend_seq_lens = {tokens},
          .seq_lens = {tokens + 7}};
}

// A request whose reply of all outputs is some MiB.
TestRequest Large() {
  return {.spec = {.nsa_index_topk = 100, .mode = kernels::SequenceMode::kCausal, .outputs = kernels::OutputSet::All()},
          .extend_seq_lens = {1'000, 0, 150'000, 3},
          .seq_lens = {1'000, 5, 100'000, 50}};
}

// Puts an item's chunks together, judging each.
class Assembly {
 public:
  // Takes a message of the item; true when it was the last.
  bool Add(const v1::ExpandStreamResponse& message) {
    EXPECT_FALSE(done_) << "a message after the item's last";
    done_ = message.last_chunk();
    ++messages_;
    if (message.has_refusal()) {
      refusal_ = message.refusal();
      EXPECT_TRUE(done_) << "a refusal is terminal";
      return true;
    }
    EXPECT_EQ(message.first_token(), next_token_);
    EXPECT_LE(message.ByteSizeLong(), size_t{1} << 20);
    const Arrays chunk = testing::ToArrays(message.expansion());
    std::optional<size_t> tokens;
    for (kernels::Output output : kernels::kAllOutputs) {
      const size_t i = static_cast<size_t>(output);
      const bool per_token = output != kernels::Output::kCuSeqlensQ && output != kernels::Output::kCuSeqlensK;
      if (per_token && !chunk[i].empty()) {
        const size_t n = chunk[i].size() - (output == kernels::Output::kNsaCuSeqlensK && done_ ? 1 : 0);
        EXPECT_EQ(tokens.value_or(n), n) << kernels::OutputName(output);
        tokens = n;
      }
      const bool allowed = per_token || chunk[i].empty() || messages_ == 1;
      EXPECT_TRUE(allowed) << "sums over sequences ride in the first chunk";
      arrays_[i].insert(arrays_[i].end(), chunk[i].begin(), chunk[i].end());
    }
    next_token_ += static_cast<int64_t>(tokens.value_or(0));
    return done_;
  }
  const Arrays& arrays() const { return arrays_; }
  const std::optional<v1::Refusal>& refusal() const { return refusal_; }
  int messages() const { return messages_; }

 private:
  Arrays arrays_;
  std::optional<v1::Refusal> refusal_;
  int64_t next_token_ = 0;
  int messages_ = 0;
  bool done_ = false;
};

// An open stream.
class Stream {
 public:
  explicit Stream(RunningServer& server) : stub_(server.Stub()), stream_(stub_->ExpandStream(&context_)) {}

  bool TrySend(const v1::ExpandStreamRequest& item) { return stream_->Write(item); }
  void Send(const v1::ExpandStreamRequest& item) { EXPECT_TRUE(TrySend(item)); }
  void Send(uint64_t id, const TestRequest& request) { Send(Item(id, request)); }
  void Cancel(uint64_t id) {
    v1::ExpandStreamRequest cancel;
    cancel.set_cancel_request_id(id);
    Send(cancel);
  }
  // The answers until `count` items have theirs.
  std::map<uint64_t, Assembly> Read(size_t count) {
    std::map<uint64_t, Assembly> items;
    v1::ExpandStreamResponse message;
    for (size_t done = 0; done < count;) {
      if (!stream_->Read(&message)) {
        ADD_FAILURE() << "the stream ended after " << done << " of " << count << " answers";
        break;
      }
      const uint64_t id = message.has_refusal() ? message.refusal().request_id() : message.expansion().request_id();
      if (items[id].Add(message)) ++done;
    }
    return items;
  }
  Assembly ReadOne() { return Read(1).begin()->second; }
  grpc::Status Close() {
    stream_->WritesDone();
    return End();
  }
  // The status once nothing more comes.
  grpc::Status End() {
    v1::ExpandStreamResponse message;
    while (stream_->Read(&message)) ADD_FAILURE() << "an answer nobody asked for: " << message.ShortDebugString();
    return stream_->Finish();
  }
  void TryCancel() { context_.TryCancel(); }
  // What came with the status, which was End's.
  std::string Pushback() const {
    const auto& trailers = context_.GetServerTrailingMetadata();
    const auto pushback = trailers.find("grpc-retry-pushback-ms");
    return pushback == trailers.end() ? "" : std::string(pushback->second.data(), pushback->second.size());
  }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<v1::MetadataService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ExpandStreamRequest, v1::ExpandStreamResponse>> stream_;
};

TEST(StreamTest, AnswersEachItemUnderItsId) {
  RunningServer server;
  Stream stream(server);
  std::map<uint64_t, TestRequest> sent;
  std::mt19937_64 random(1);
  for (int i = 0; i < 50; ++i) {
    TestRequest request = testing::RandomRequest(random);
    request.spec.outputs.Add(kernels::Output::kKs);
    const uint64_t id = random();
    stream.Send(id, request);
    sent[id] = request;
  }
  const auto answers = stream.Read(sent.size());
  for (const auto& [id, request] : sent) {
    ASSERT_FALSE(answers.at(id).refusal()) << answers.at(id).refusal()->message();
    EXPECT_EQ(answers.at(id).arrays(), testing::ReferenceArrays(request)) << id;
  }
  EXPECT_TRUE(stream.Close().ok());
}

TEST(StreamTest, CutsALargeReplyIntoChunksOfOneMebibyte) {
  RunningServer server;
  Stream stream(server);
  const TestRequest request = Large();
  stream.Send(1, request);
  const Assembly answer = stream.ReadOne();
  EXPECT_GE(answer.messages(), 5);
  EXPECT_EQ(answer.arrays(), testing::ReferenceArrays(request));
  EXPECT_TRUE(stream.Close().ok());
}

TEST(StreamTest, EveryChunkBoundaryReadsBackRight) {
  RunningServer server;
  Stream stream(server);
  // Two outputs: 131,000 tokens are about one chunk.
  for (int32_t tokens : {130'900, 131'000, 131'010, 131'030, 131'040, 131'072, 262'000, 262'144}) {
    TestRequest request = Small(tokens);
    request.spec.outputs = {kernels::Output::kPositions, kernels::Output::kNsaCuSeqlensK};
    stream.Send(7, request);
    EXPECT_EQ(stream.ReadOne().arrays(), testing::ReferenceArrays(request)) << tokens;
  }
}

TEST(StreamTest, ABadItemRefusesThatItemOnly) {
  RunningServer server;
  Stream stream(server);
  stream.Send(1, Small());
  v1::ExpandStreamRequest bad = Item(2, Small());
  bad.mutable_expand()->set_seq_lens(0, -1);
  stream.Send(bad);
  stream.Send(v1::ExpandStreamRequest());
  stream.Send(3, Small());
  const auto answers = stream.Read(4);
  EXPECT_FALSE(answers.at(1).refusal());
  EXPECT_FALSE(answers.at(3).refusal());
  ASSERT_TRUE(answers.at(2).refusal());
  const v1::Refusal& refusal = *answers.at(2).refusal();
  EXPECT_EQ(refusal.code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refusal.reason(), v1::REFUSAL_REASON_NEGATIVE_LENGTH);
  EXPECT_EQ(refusal.field(), "seq_lens[0]");
  EXPECT_EQ(refusal.value(), -1);
  EXPECT_FALSE(refusal.has_retry_after());
  EXPECT_EQ(answers.at(0).refusal()->reason(), v1::REFUSAL_REASON_MALFORMED) << "an item without an action";
  EXPECT_TRUE(stream.Close().ok());
}

TEST(StreamTest, AnIdInFlightIsRefusedAndFreeAgainAfterItsAnswer) {
  testing::Gate gate;
  server::Options options = testing::LoopbackOptions();
  options.completion_queues = 2;
  options.lanes = 1;
  RunningServer server(options, testing::MakeGatedBackend(gate));
  // A unary call holds the lane, so that the stream's item waits in the queue.
  std::thread holder([&] { EXPECT_TRUE(testing::Call(*server.Stub(), testing::ToProto(Small())).status.ok()); });
  gate.AwaitStarted(1);
  {
    // Which of the two threads holds the lane is not known: a stream on it would wait; another connection is on the
    // other one.
    std::vector<std::unique_ptr<Stream>> streams;
    for (int i = 0; i < 4; ++i) {
      streams.push_back(std::make_unique<Stream>(server));
      streams.back()->Send(5, Small());
      streams.back()->Send(5, Small());
    }
    gate.Open();
    holder.join();
    int duplicates = 0;
    for (auto& stream : streams) {
      v1::RefusalReason reason = v1::REFUSAL_REASON_UNSPECIFIED;
      // Both have id 5: a refusal of the second, or two expansions when the first was answered before the second was
      // read.
      Assembly first = stream->ReadOne();
      Assembly second = stream->ReadOne();
      for (const Assembly& answer : {first, second}) {
        if (answer.refusal()) reason = answer.refusal()->reason();
      }
      if (reason == v1::REFUSAL_REASON_DUPLICATE_ID) ++duplicates;
      stream->Send(5, Small());
      EXPECT_FALSE(stream->ReadOne().refusal()) << "the id is free again";
      EXPECT_TRUE(stream->Close().ok());
    }
    EXPECT_GT(duplicates, 0) << "no id was ever in flight twice";
  }
}

TEST(StreamTest, ACancelledItemIsAnsweredCancelledAndNotLaunched) {
  server::Options options = testing::LoopbackOptions();
  options.batch.batch_delay = absl::Hours(1);  // what is sent stays in the queue
  options.batch.max_batch_requests = 2;
  RunningServer server(options);
  Stream stream(server);
  stream.Send(1, Small());
  stream.Cancel(1);
  stream.Cancel(99);        // unknown: ignored
  stream.Send(2, Small());  // the batch is full
  const auto answers = stream.Read(2);
  ASSERT_TRUE(answers.at(1).refusal());
  EXPECT_EQ(answers.at(1).refusal()->code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(answers.at(1).refusal()->reason(), v1::REFUSAL_REASON_CANCELLED);
  EXPECT_FALSE(answers.at(2).refusal());
}

TEST(StreamTest, AnItemsTimeoutBoundsThatItem) {
  RunningServer server;
  Stream stream(server);
  v1::ExpandStreamRequest late = Item(1, Small());
  late.mutable_timeout()->set_seconds(-1);
  stream.Send(late);
  v1::ExpandStreamRequest in_time = Item(2, Small());
  in_time.mutable_timeout()->set_seconds(INT64_MAX);
  stream.Send(in_time);
  const auto answers = stream.Read(2);
  ASSERT_TRUE(answers.at(1).refusal());
  EXPECT_EQ(answers.at(1).refusal()->code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_THAT(answers.at(1).refusal()->message(), ::testing::HasSubstr("the caller's deadline passed"));
  EXPECT_EQ(answers.at(1).refusal()->limit(), 0) << "it had no time from its arrival";
  EXPECT_FALSE(answers.at(2).refusal());
}

TEST(StreamTest, OverTheBudgetItWaitsAndIsNotRefused) {
  server::Options options = testing::LoopbackOptions();
  options.request.max_reply_bytes = 1 << 20;
  options.request.max_unary_reply_bytes = 1 << 20;
  options.output_budget_bytes = (1 << 20) + (1 << 16);  // one large reply, or hardly more
  RunningServer server(options);
  std::vector<std::unique_ptr<Stream>> streams;
  for (int i = 0; i < 4; ++i) streams.push_back(std::make_unique<Stream>(server));
  for (int round = 0; round < 5; ++round) {
    for (auto& stream : streams) stream->Send(round, Small(100'000));
  }
  for (auto& stream : streams) {
    for (const auto& [id, answer] : stream->Read(5)) EXPECT_FALSE(answer.refusal()) << answer.refusal()->message();
    EXPECT_TRUE(stream->Close().ok());
  }
  server.server().Drain();
  EXPECT_EQ(server.server().output_blocks_in_use(), 0u);
}

TEST(StreamTest, AStreamThatNeverReadsStallsNobodyElse) {
  RunningServer server;
  Stream silent(server);
  std::thread writer([&silent] {
    // Blocks once the server reads no more of it, until the stream is cancelled.
    for (int i = 0; i < 2'000 && silent.TrySend(Item(i, Small(1'000))); ++i) {
    }
  });
  Stream stream(server);
  for (int i = 0; i < 200; ++i) {
    stream.Send(i, Small(1'000));
    ASSERT_FALSE(stream.ReadOne().refusal());
  }
  EXPECT_TRUE(stream.Close().ok());
  silent.TryCancel();
  writer.join();
  server.server().Drain();
  EXPECT_EQ(server.server().live_calls(), 0);
  EXPECT_EQ(server.server().output_blocks_in_use(), 0u);
}

TEST(StreamTest, DrainAnswersWhatWasReadAndEndsUnavailable) {
  testing::Gate gate;
  RunningServer server(testing::LoopbackOptions(), testing::MakeGatedBackend(gate));
  Stream stream(server);
  stream.Send(1, Small());
  gate.AwaitStarted(1);
  std::thread drain([&server] { server.server().Drain(); });
  gate.Open();
  EXPECT_FALSE(stream.ReadOne().refusal());
  const grpc::Status status = stream.End();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_EQ(testing::ErrorInfoOf(status), "DRAINING  0 0");
  EXPECT_EQ(stream.Pushback(), "50") << "milliseconds, for gRPC's own retries";
  drain.join();
  EXPECT_EQ(server.server().live_calls(), 0);
}

TEST(StreamTest, AbandonedStreamsLeaveNothingBehind) {
  RunningServer server;
  for (int i = 0; i < 200; ++i) {
    Stream stream(server);
    stream.Send(1, Small());
    if (i % 2 == 0) stream.Send(2, Large());
    stream.TryCancel();
  }
  server.server().Drain();
  EXPECT_EQ(server.server().live_calls(), 0);
  EXPECT_EQ(server.server().output_blocks_in_use(), 0u);
}

}  // namespace
}  // namespace nsa::metadata
