// Many items over several streams: bad ones, cancelled ones, small and large ones. NSA_METADATA_STREAM_ITEMS says how
// many (20,000).

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <random>
#include <thread>
#include <unordered_map>

#include "server/mutex.h"
#include "tests/support/rpc.h"
#include "tests/support/running_server.h"

namespace nsa::metadata {
namespace {

using testing::Arrays;
using testing::RunningServer;
using testing::TestRequest;

constexpr int kStreams = 8;
// Items under way on a stream, more than the server reads ahead.
constexpr size_t kInFlight = 100;

int64_t Items() {
  const char* items = std::getenv("NSA_METADATA_STREAM_ITEMS");
  return items == nullptr ? 20'000 : std::atoll(items);
}

// Everything about an item follows from its id.
bool IsBad(uint64_t id) { return id % 20 == 3; }
bool IsCancelled(uint64_t id) { return id % 20 == 7; }

TestRequest RequestOf(uint64_t id) {
  std::mt19937_64 random(id);
  if (id % 2'000 == 5) {  // some MiB, in chunks
    return {
        .spec = {.nsa_index_topk = 64, .mode = kernels::SequenceMode::kCausal, .outputs = kernels::OutputSet::All()},
        .extend_seq_lens = {100'000, 0, static_cast<int32_t>(random() % 50'000)},
        .seq_lens = {120'000, 9, 1'000}};
  }
  TestRequest request = testing::RandomRequest(random, 8);
  request.spec.outputs.Add(kernels::Output::kSeqlensExpanded);
  if (IsBad(id)) request.seq_lens.push_back(1);
  return request;
}

struct Tally {
  std::atomic<int64_t> expansions{0};
  std::atomic<int64_t> cancelled{0};
  std::atomic<int64_t> bad{0};
  std::atomic<int64_t> chunked{0};
};

class LoadedStream {
 public:
  LoadedStream(RunningServer& server, Tally& tally)
      : tally_(tally), stub_(server.Stub()), stream_(stub_->ExpandStream(&context_)) {}

  // Sends ids first, first + kStreams, … below `end`, and reads until each has its one answer.
  void Run(uint64_t first, uint64_t end) {
    std::thread writer([this, first, end] { Write(first, end); });
    v1::ExpandStreamResponse message;
    while (stream_->Read(&message)) Take(message);
    writer.join();
    const grpc::Status status = stream_->Finish();
    EXPECT_TRUE(status.ok()) << status.error_message();
    server::MutexLock lock(&mutex_);
    EXPECT_TRUE(open_.empty()) << open_.size() << " items were never answered";
  }

 private:
  void Write(uint64_t first, uint64_t end) {
    for (uint64_t id = first; id < end; id += kStreams) {
      {
        server::MutexLock lock(&mutex_);
        while (open_.size() >= kInFlight) answered_.Wait(mutex_);
        open_.try_emplace(id);
      }
      v1::ExpandStreamRequest item;
      *item.mutable_expand() = testing::ToProto(RequestOf(id));
      item.mutable_expand()->set_request_id(id);
      ASSERT_TRUE(stream_->Write(item)) << "the stream broke";
      if (!IsCancelled(id)) continue;
      v1::ExpandStreamRequest cancel;
      cancel.set_cancel_request_id(id);
      ASSERT_TRUE(stream_->Write(cancel)) << "the stream broke";
    }
    stream_->WritesDone();
  }

  void Take(const v1::ExpandStreamResponse& message) {
    const bool refused = message.has_refusal();
    const uint64_t id = refused ? message.refusal().request_id() : message.expansion().request_id();
    server::MutexLock lock(&mutex_);
    const auto item = open_.find(id);
    ASSERT_NE(item, open_.end()) << "a second answer for item " << id;
    if (refused) {
      EXPECT_TRUE(message.last_chunk());
      JudgeRefusal(id, message.refusal());
    } else {
      const Arrays chunk = testing::ToArrays(message.expansion());
      for (size_t i = 0; i < chunk.size(); ++i) {
        item->second[i].insert(item->second[i].end(), chunk[i].begin(), chunk[i].end());
      }
      if (message.first_token() > 0 && message.last_chunk()) ++tally_.chunked;
      if (!message.last_chunk()) return;
      EXPECT_FALSE(IsBad(id)) << "a bad item was expanded";
      EXPECT_EQ(item->second, testing::ReferenceArrays(RequestOf(id))) << "item " << id;
      ++tally_.expansions;
    }
    open_.erase(item);
    answered_.Signal();
  }

  void JudgeRefusal(uint64_t id, const v1::Refusal& refusal) {
    if (refusal.reason() == v1::REFUSAL_REASON_CANCELLED) {
      EXPECT_TRUE(IsCancelled(id)) << "item " << id << " was never cancelled";
      ++tally_.cancelled;
    } else {
      EXPECT_TRUE(IsBad(id)) << "item " << id << ": " << refusal.message();
      EXPECT_EQ(refusal.reason(), v1::REFUSAL_REASON_LENGTHS_DIFFER) << refusal.message();
      ++tally_.bad;
    }
  }

  Tally& tally_;
  grpc::ClientContext context_;
  std::unique_ptr<v1::MetadataService::Stub> stub_;
  std::unique_ptr<grpc::ClientReaderWriter<v1::ExpandStreamRequest, v1::ExpandStreamResponse>> stream_;
  server::Mutex mutex_;
  server::CondVar answered_;
  std::unordered_map<uint64_t, Arrays> open_ ABSL_GUARDED_BY(mutex_);
};

TEST(StreamLoadTest, EachOfManyItemsIsAnsweredExactlyOnceAndRight) {
  server::Options options = testing::LoopbackOptions();
  // Fewer lanes than threads, so that items wait, meet in batches, and can still be cancelled.
  options.completion_queues = 4;
  options.lanes = 1;
  RunningServer server(options);
  Tally tally;
  std::vector<std::thread> threads;
  for (int i = 0; i < kStreams; ++i) {
    threads.emplace_back([&server, &tally, i] { LoadedStream(server, tally).Run(i, Items()); });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(tally.expansions + tally.cancelled + tally.bad, Items());
  EXPECT_EQ(tally.bad, (Items() + 16) / 20);
  EXPECT_EQ(tally.chunked, (Items() + 1'994) / 2'000);
  std::printf("items %lld: %lld expanded (%lld in chunks), %lld refused as bad, %lld cancelled\n",
              static_cast<long long>(Items()), static_cast<long long>(tally.expansions),
              static_cast<long long>(tally.chunked), static_cast<long long>(tally.bad),
              static_cast<long long>(tally.cancelled));
  server.server().Drain();
  EXPECT_EQ(server.server().live_calls(), 0);
  EXPECT_EQ(server.server().output_blocks_in_use(), 0u);
}

}  // namespace
}  // namespace nsa::metadata
