#include "server/batcher.h"

#include <gtest/gtest.h>

#include <deque>
#include <thread>

#include "absl/time/time.h"
#include "kernels/host_backend.h"
#include "server/held_answers.h"
#include "tests/server/tasks.h"
#include "tests/server/tcp_connection.h"

namespace nsa::metadata::server {
namespace {

// Lanes whose batches begin and end when the test says so.
class PuppetLane final : public kernels::Lane {
 public:
  struct Strings {
    Mutex mutex;
    CondVar changed;
    int started = 0;
    int allowed = 0;
    absl::Status result;
    kernels::Kernel kernel = kernels::Kernel::kCpu;
    std::vector<size_t> batch_sizes;
    const int32_t* first_output = nullptr;  // of the last batch

    void Allow(int batches) {
      MutexLock lock(&mutex);
      allowed += batches;
      changed.SignalAll();
    }
    void AwaitStarted(int batches) {
      MutexLock lock(&mutex);
      while (started < batches) changed.Wait(mutex);
    }
  };

  explicit PuppetLane(Strings& strings) : strings_(strings) {}
  kernels::RequestBatch& batch() override { return batch_; }
  absl::StatusOr<kernels::Kernel> Expand() override {
    MutexLock lock(&strings_.mutex);
    strings_.batch_sizes.push_back(batch_.requests().size());
    strings_.first_output = batch_.requests().front().out[0];
    const int number = ++strings_.started;
    strings_.changed.SignalAll();
    while (strings_.allowed < number) strings_.changed.Wait(strings_.mutex);
    if (!strings_.result.ok()) return strings_.result;
    return strings_.kernel;
  }

 private:
  Strings& strings_;
  kernels::RequestBatch batch_{/*max_sequences=*/1'000, /*max_requests=*/1'000};
};

class BatcherTest : public ::testing::Test {
 protected:
  static Batcher::Options Policy() {
    Batcher::Options options;
    options.policy = {.max_requests = 1'000, .max_sequences = 1'000, .max_tokens = 1'000};
    options.max_inline_time = std::chrono::hours(1);
    return options;
  }
  void MakeBatcher(Batcher::Options options, int lanes = 1, kernels::BackendKind backend = kernels::BackendKind::kCpu) {
    std::vector<std::unique_ptr<kernels::Lane>> made;
    for (int i = 0; i < lanes; ++i) made.push_back(std::make_unique<PuppetLane>(strings_));
    batcher_ = std::make_unique<Batcher>(options, backend, std::move(made), *pool_, metrics_);
  }
  std::optional<NoRoom> Submit(RecordingResponder& responder, TimePoint deadline = TimePoint::max()) {
    std::unique_ptr<Task> task = MakeTask(responder, *pool_);
    task->deadline = deadline;
    const std::optional<NoRoom> why = batcher_->Submit(&task);
    if (why) task->Refuse(Cancelled());
    return why;
  }

  Metrics metrics_;
  const std::shared_ptr<OutputPool> pool_ =
      *OutputPool::Create(*kernels::AllocatePageable(256 * OutputPool::kBlockBytes),
                          {.spare = *kernels::AllocatePageable(256 * OutputPool::kBlockBytes), .caller_share = 1});
  PuppetLane::Strings strings_;
  std::unique_ptr<Batcher> batcher_;
};

TEST_F(BatcherTest, RunsOnTheSubmittersThreadWhenALaneIsFree) {
  strings_.Allow(1);
  MakeBatcher(Policy());
  RecordingResponder responder;
  EXPECT_FALSE(Submit(responder));
  EXPECT_EQ(responder.answers(), 1) << "the answer was to be there when Submit returned";
  EXPECT_TRUE(responder.reply().has_value());
}

TEST_F(BatcherTest, TimingSaysWhereADevicesBatchWasComputed) {
  MakeBatcher(Policy(), /*lanes=*/1, kernels::BackendKind::kCuda);
  for (const auto& [kernel, backend] :
       {std::pair(kernels::Kernel::kRows, v1::BACKEND_CUDA), {kernels::Kernel::kCpu, v1::BACKEND_CPU}}) {
    strings_.kernel = kernel;
    strings_.Allow(1);
    RecordingResponder responder;
    std::unique_ptr<Task> task = MakeTask(responder, *pool_);
    task->expansion.include_timing = true;
    EXPECT_FALSE(batcher_->Submit(&task));
    v1::ExpandResponse reply;
    ASSERT_FALSE(Decode(responder.reply().value(), &reply));
    EXPECT_EQ(reply.timing().backend(), backend) << kernels::KernelName(kernel);
  }
}

TEST_F(BatcherTest, LeavesALargeBatchToAWorker) {
  Batcher::Options options = Policy();
  options.max_inline_tokens = 1;
  MakeBatcher(options);
  RecordingResponder small;
  RecordingResponder large;
  strings_.Allow(1);
  EXPECT_FALSE(Submit(small));
  EXPECT_EQ(small.answers(), 1) << "the answer was to be there when Submit returned";
  std::unique_ptr<Task> task = MakeTask(large, *pool_, /*sequences=*/2);
  EXPECT_FALSE(batcher_->Submit(&task)) << "it was to be taken";
  EXPECT_EQ(large.answers(), 0) << "its lane is held: who submitted it was not to wait";
  strings_.Allow(1);
  large.AwaitAnswer();
  EXPECT_TRUE(large.reply().has_value());
}

TEST_F(BatcherTest, LeavesBatchesToAWorkerOnceTheyTakeLong) {
  Batcher::Options options = Policy();
  options.max_inline_time = std::chrono::nanoseconds(1);
  MakeBatcher(options);
  RecordingResponder first;
  RecordingResponder second;
  strings_.Allow(1);
  EXPECT_FALSE(Submit(first));
  EXPECT_EQ(first.answers(), 1) << "nobody knows yet how long one takes";
  EXPECT_FALSE(Submit(second));
  EXPECT_EQ(second.answers(), 0) << "its lane is held: who submitted it was not to wait";
  strings_.Allow(1);
  second.AwaitAnswer();
  EXPECT_TRUE(second.reply().has_value());
}

TEST_F(BatcherTest, TakesWhatArrivedWhileItsLaneWasBusyAsOneBatch) {
  MakeBatcher(Policy());
  std::deque<RecordingResponder> responders(6);
  std::thread first([&] { Submit(responders[0]); });
  strings_.AwaitStarted(1);
  for (int i = 1; i < 6; ++i) EXPECT_FALSE(Submit(responders[i]));
  EXPECT_EQ(batcher_->queue_requests(), 5u);
  strings_.Allow(2);
  first.join();
  for (RecordingResponder& responder : responders) {
    responder.AwaitAnswer();
    EXPECT_TRUE(responder.reply().has_value());
  }
  EXPECT_EQ(strings_.batch_sizes, (std::vector<size_t>{1, 5}));
}

TEST_F(BatcherTest, LanesWorkAtTheSameTime) {
  MakeBatcher(Policy(), /*lanes=*/2);
  std::deque<RecordingResponder> responders(2);
  std::thread first([&] { Submit(responders[0]); });
  std::thread second([&] { Submit(responders[1]); });
  strings_.AwaitStarted(2);  // both are in their lanes, neither has ended
  strings_.Allow(2);
  first.join();
  second.join();
  EXPECT_EQ(responders[0].answers() + responders[1].answers(), 2);
}

constexpr DeliverySlot kHeldSlot = 7;

// Its answer is held back.
class HoldingResponder final : public Responder {
 public:
  // `long_ago`: for as long as one may be, before the next answer.
  HoldingResponder(HeldAnswers& held, bool long_ago) : held_(held), long_ago_(long_ago) {}
  bool cancelled() const override { return false; }
  void Reply(Messages, const Journey&) override {
    held_.Hold(kHeldSlot);
    while (long_ago_ && !held_.old()) std::this_thread::yield();
  }
  void Refuse(const Refusal& refusal) override { ADD_FAILURE() << refusal.message; }

 private:
  HeldAnswers& held_;
  const bool long_ago_;
};

TEST_F(BatcherTest, OthersWorkKeepsNoAnswerThatIsHeldBack) {
  TcpConnection connection;
  ASSERT_NO_FATAL_FAILURE(connection.Open());
  Descriptors descriptors;
  descriptors.Set(kHeldSlot, connection.ours.get());
  HeldAnswers held(descriptors);  // the first submitter's
  MakeBatcher(Policy());
  RecordingResponder other;
  HoldingResponder first_answer(held, /*long_ago=*/false);
  HoldingResponder second_answer(held, /*long_ago=*/true);
  const auto submit_for = [&](Responder& responder) {
    std::unique_ptr<Task> task = MakeTask(other, *pool_);
    task->AnswerTo(responder);
    EXPECT_FALSE(batcher_->Submit(&task));
  };
  std::thread first([&] {
    held.Hold(kHeldSlot);
    submit_for(first_answer);
    EXPECT_TRUE(held.empty()) << "the answer before it in its batch was held long enough";
  });
  strings_.AwaitStarted(1);
  EXPECT_TRUE(connection.corked()) << "its own request is what it was held for";
  submit_for(second_answer);
  submit_for(other);
  strings_.Allow(1);
  strings_.AwaitStarted(2);
  EXPECT_FALSE(connection.corked()) << "others' requests";
  strings_.Allow(1);
  first.join();
}

TEST_F(BatcherTest, SmallBatchesShareALaneWhereTheyAreToldToAndLargeOnesDoNot) {
  Batcher::Options options = Policy();
  options.small_batch_lanes = 1;
  options.small_batch_tokens = 2;
  MakeBatcher(options, /*lanes=*/3);
  std::deque<RecordingResponder> small(3);
  std::thread first([&] { Submit(small[0]); });
  strings_.AwaitStarted(1);
  EXPECT_FALSE(Submit(small[1]));
  EXPECT_EQ(batcher_->queue_requests(), 1u) << "a small batch is under way: another one's request was to wait";
  // Together with it the next one is no small batch.
  std::thread second([&] { Submit(small[2]); });
  strings_.AwaitStarted(2);
  EXPECT_EQ(batcher_->queue_requests(), 0u);
  strings_.Allow(2);
  first.join();
  second.join();
  for (RecordingResponder& responder : small) EXPECT_TRUE(responder.reply().has_value());
  EXPECT_EQ(strings_.batch_sizes, (std::vector<size_t>{1, 2}));
}

TEST_F(BatcherTest, ALargeBatchKeepsNoSmallOneWaiting) {
  Batcher::Options options = Policy();
  options.small_batch_lanes = 1;
  options.small_batch_tokens = 2;
  MakeBatcher(options, /*lanes=*/2);
  RecordingResponder large;
  RecordingResponder small;
  std::thread first([&] {
    std::unique_ptr<Task> task = MakeTask(large, *pool_, /*sequences=*/2);
    EXPECT_FALSE(batcher_->Submit(&task));
  });
  strings_.AwaitStarted(1);
  std::thread second([&] { Submit(small); });
  strings_.AwaitStarted(2);  // beside it
  strings_.Allow(2);
  first.join();
  second.join();
  EXPECT_EQ(large.answers() + small.answers(), 2);
}

TEST_F(BatcherTest, RefusesWhatTheQueueHasNoRoomForAndLeavesItToTheCaller) {
  Batcher::Options options = Policy();
  options.max_queue_requests = 1;
  MakeBatcher(options);
  std::deque<RecordingResponder> responders(3);
  std::thread first([&] { Submit(responders[0]); });
  strings_.AwaitStarted(1);
  EXPECT_FALSE(Submit(responders[1]));
  EXPECT_EQ(Submit(responders[2]), NoRoom::kQueue);
  strings_.Allow(2);
  first.join();
  responders[1].AwaitAnswer();
}

TEST_F(BatcherTest, LaunchesNothingForARequestWhoseDeadlineHasPassed) {
  strings_.Allow(1);
  MakeBatcher(Policy());
  RecordingResponder responder;
  Submit(responder, Clock::now() - std::chrono::milliseconds(1));
  responder.AwaitAnswer();
  EXPECT_EQ(responder.refusal()->code, grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(strings_.started, 0);
}

TEST_F(BatcherTest, LaunchesNothingForACancelledRequest) {
  strings_.Allow(1);
  MakeBatcher(Policy());
  RecordingResponder responder;
  responder.Cancel();
  Submit(responder);
  responder.AwaitAnswer();
  EXPECT_EQ(responder.refusal()->code, grpc::StatusCode::CANCELLED);
  EXPECT_EQ(strings_.started, 0);
}

TEST_F(BatcherTest, ComputesWhatALaneFailsAtOnTheCpuAndAsksNoLaneAgain) {
  strings_.Allow(1);
  strings_.result = absl::UnavailableError("device lost");
  Batcher::Options options = Policy();
  std::vector<absl::Status> reported;
  options.device_lost = [&](const absl::Status& why) { reported.push_back(why); };
  MakeBatcher(options, /*lanes=*/2, kernels::BackendKind::kCuda);
  for (int i = 0; i < 3; ++i) {
    RecordingResponder responder;
    std::unique_ptr<Task> task = MakeTask(responder, *pool_, /*sequences=*/2);
    task->expansion.include_timing = true;
    EXPECT_FALSE(batcher_->Submit(&task));
    v1::ExpandResponse reply;
    ASSERT_FALSE(Decode(responder.reply().value(), &reply));
    EXPECT_EQ(std::vector<int>(reply.seqlens_expanded().begin(), reply.seqlens_expanded().end()),
              (std::vector<int>{100, 101}));
    EXPECT_EQ(reply.timing().backend(), v1::BACKEND_CPU);
    std::vector<grpc::Slice> slices;
    ASSERT_TRUE(responder.reply()->Dump(&slices).ok());
    const auto* failed = reinterpret_cast<const uint8_t*>(strings_.first_output);
    for (const grpc::Slice& slice : slices) {
      EXPECT_FALSE(slice.begin() <= failed && failed < slice.end()) << "sent from memory that the device may write to";
    }
  }
  EXPECT_EQ(strings_.started, 1) << "a lane was asked after one had failed";
  EXPECT_EQ(reported, (std::vector<absl::Status>{strings_.result}));
  EXPECT_TRUE(batcher_->device_lost());
}

TEST_F(BatcherTest, HoldsACallersRequestsToItsShareOnceTheQueueIsHalfFull) {
  Batcher::Options options = Policy();
  options.max_queue_requests = 8;
  options.caller_share = 0.25;
  MakeBatcher(options);
  std::deque<RecordingResponder> responders(10);
  std::thread first([&] { Submit(responders[0]); });
  strings_.AwaitStarted(1);
  const auto submit = [&](RecordingResponder& responder, Account account) {
    std::unique_ptr<Task> task = MakeTask(responder, *pool_);
    task->account = account;
    const std::optional<NoRoom> why = batcher_->Submit(&task);
    if (why) task->Refuse(Cancelled());
    return why;
  };
  for (int i = 1; i <= 5; ++i) EXPECT_FALSE(submit(responders[i], 7)) << "not half full yet";
  EXPECT_EQ(submit(responders[6], 7), NoRoom::kQueueShare);
  EXPECT_FALSE(submit(responders[7], 8)) << "another caller's";
  EXPECT_FALSE(submit(responders[8], kNoAccount)) << "nobody's";
  strings_.Allow(2);
  first.join();
  for (int i : {1, 2, 3, 4, 5, 7, 8}) responders[i].AwaitAnswer();
  strings_.Allow(1);
  EXPECT_FALSE(submit(responders[9], 7)) << "it has nothing in the queue any more";
  responders[9].AwaitAnswer();
}

TEST_F(BatcherTest, WithADelayRequestsMeetInOneBatchThoughALaneIsFree) {
  Batcher::Options options = Policy();
  options.policy.max_sequences = 3;
  options.policy.delay = std::chrono::hours(1);
  strings_.Allow(1);
  MakeBatcher(options);
  std::deque<RecordingResponder> responders(3);
  Submit(responders[0]);
  Submit(responders[1]);
  EXPECT_EQ(batcher_->queue_requests(), 2u);
  Submit(responders[2]);  // the batch is full
  for (RecordingResponder& responder : responders) responder.AwaitAnswer();
  EXPECT_EQ(strings_.batch_sizes, (std::vector<size_t>{3}));
}

TEST_F(BatcherTest, ADelayEndsByItself) {
  Batcher::Options options = Policy();
  options.policy.delay = std::chrono::milliseconds(1);
  strings_.Allow(1);
  MakeBatcher(options);
  RecordingResponder responder;
  Submit(responder);
  responder.AwaitAnswer();
  EXPECT_TRUE(responder.reply().has_value());
}

TEST_F(BatcherTest, AnswersAllThatWaitsBeforeItEnds) {
  Batcher::Options options = Policy();
  options.policy.delay = std::chrono::hours(1);
  strings_.Allow(10);
  MakeBatcher(options);
  std::deque<RecordingResponder> responders(5);
  for (RecordingResponder& responder : responders) Submit(responder);
  batcher_.reset();
  for (RecordingResponder& responder : responders) EXPECT_EQ(responder.answers(), 1);
}

TEST_F(BatcherTest, AnswersEachOfManyThreadsExactlyOnce) {
  strings_.Allow(1 << 30);
  MakeBatcher(Policy(), /*lanes=*/2);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([this] {
      for (int n = 0; n < 500; ++n) {
        RecordingResponder responder;
        Submit(responder);
        responder.AwaitAnswer();
        ASSERT_EQ(responder.answers(), 1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(pool_->blocks_in_use(), 0u);
}

}  // namespace
}  // namespace nsa::metadata::server
