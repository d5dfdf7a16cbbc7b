#include "server/batch_queue.h"

#include <gtest/gtest.h>

#include "tests/server/tasks.h"

namespace nsa::metadata::server {
namespace {

using std::chrono::milliseconds;

class BatchQueueTest : public ::testing::Test {
 protected:
  // A task of `sequences` sequences and as many tokens.
  std::unique_ptr<Task> Make(int64_t sequences, TimePoint admitted = TimePoint()) {
    return MakeTask(responders_.emplace_back(), *pool_, sequences, admitted);
  }

  const std::shared_ptr<OutputPool> pool_ =
      *OutputPool::Create(*kernels::AllocatePageable(64 * OutputPool::kBlockBytes));
  std::deque<RecordingResponder> responders_;
  const TimePoint now_ = TimePoint() + std::chrono::hours(1);
};

TEST_F(BatchQueueTest, TakesAllThatWaitsInTheOrderOfArrival) {
  BatchQueue queue({.max_requests = 100, .max_sequences = 100, .max_tokens = 100});
  for (int64_t sequences : {3, 1, 2}) queue.Push(Make(sequences));
  const Batch batch = queue.Take(now_);
  ASSERT_EQ(batch.tasks.size(), 3u);
  EXPECT_EQ(batch.tasks[0]->expansion.total_tokens, 3);
  EXPECT_EQ(batch.tasks[2]->expansion.total_tokens, 2);
  EXPECT_EQ(batch.num_sequences, 6);
  EXPECT_EQ(batch.total_tokens, 6);
  EXPECT_EQ(batch.closed, BatchClosed::kQueueEmpty);
  EXPECT_EQ(queue.size(), 0u);
}

TEST_F(BatchQueueTest, CountsAnAccountsRequestsWhileTheyWait) {
  BatchQueue queue({.max_requests = 1, .max_sequences = 100, .max_tokens = 100});
  for (const Account account : {Account{7}, Account{7}, Account{9}}) {
    std::unique_ptr<Task> task = Make(1);
    task->account = account;
    queue.Push(std::move(task));
  }
  EXPECT_EQ(queue.requests_of(7), 2);
  EXPECT_EQ(queue.requests_of(9), 1);
  queue.Take(now_);
  EXPECT_EQ(queue.requests_of(7), 1);
  queue.Take(now_);
  queue.Take(now_);
  EXPECT_EQ(queue.requests_of(7), 0) << "a caller would have less and less of its share";
  EXPECT_EQ(queue.requests_of(9), 0);
}

TEST_F(BatchQueueTest, ClosesABatchBeforeTheRequestThatWouldPassALimit) {
  BatchQueue by_sequences({.max_requests = 100, .max_sequences = 4, .max_tokens = 100});
  BatchQueue by_tokens({.max_requests = 100, .max_sequences = 100, .max_tokens = 4});
  for (BatchQueue* queue : {&by_sequences, &by_tokens}) {
    for (int64_t sequences : {3, 2, 2}) queue->Push(Make(sequences));
  }
  Batch batch = by_sequences.Take(now_);
  EXPECT_EQ(batch.tasks.size(), 1u);
  EXPECT_EQ(batch.closed, BatchClosed::kMaxSequences);
  EXPECT_EQ(by_sequences.Take(now_).tasks.size(), 2u);
  batch = by_tokens.Take(now_);
  EXPECT_EQ(batch.tasks.size(), 1u);
  EXPECT_EQ(batch.closed, BatchClosed::kMaxTokens);
}

TEST_F(BatchQueueTest, ClosesABatchThatHoldsAsManyRequestsAsItMay) {
  BatchQueue queue({.max_requests = 2, .max_sequences = 100, .max_tokens = 100, .delay = milliseconds(5)});
  queue.Push(Make(1, now_));
  EXPECT_EQ(queue.ReadyAt(), now_ + milliseconds(5));
  queue.Push(Make(1, now_));
  queue.Push(Make(1, now_));
  EXPECT_EQ(queue.ReadyAt(), now_);
  const Batch batch = queue.Take(now_);
  EXPECT_EQ(batch.tasks.size(), 2u);
  EXPECT_EQ(batch.closed, BatchClosed::kMaxRequests);
}

TEST_F(BatchQueueTest, ARequestOverTheLimitsGoesAlone) {
  BatchQueue queue({.max_requests = 100, .max_sequences = 2, .max_tokens = 2});
  queue.Push(Make(5));
  queue.Push(Make(1));
  EXPECT_EQ(queue.Take(now_).tasks.size(), 1u);
  EXPECT_EQ(queue.Take(now_).tasks.size(), 1u);
}

TEST_F(BatchQueueTest, LeavesOutWhatHasExpiredOrWasCancelled) {
  BatchQueue queue({.max_requests = 100, .max_sequences = 100, .max_tokens = 100});
  auto expired = Make(1);
  expired->deadline = now_;
  auto in_time = Make(2);
  in_time->deadline = now_ + milliseconds(1);
  auto cancelled = Make(3);
  responders_.back().Cancel();
  queue.Push(std::move(expired));
  queue.Push(std::move(cancelled));
  queue.Push(std::move(in_time));
  const Batch batch = queue.Take(now_);
  ASSERT_EQ(batch.tasks.size(), 1u);
  EXPECT_EQ(batch.tasks[0]->expansion.total_tokens, 2);
  EXPECT_EQ(batch.expired.size(), 1u);
  EXPECT_EQ(batch.cancelled.size(), 1u);
  EXPECT_EQ(batch.total_tokens, 2);
}

TEST_F(BatchQueueTest, IsReadyAtOnceWithoutADelay) {
  BatchQueue queue({.max_requests = 100, .max_sequences = 100, .max_tokens = 100});
  EXPECT_EQ(queue.ReadyAt(), TimePoint::max());
  queue.Push(Make(1, now_));
  EXPECT_EQ(queue.ReadyAt(), now_);
}

TEST_F(BatchQueueTest, WaitsForItsFirstRequestsDelayUnlessItIsFull) {
  BatchQueue queue({.max_requests = 100, .max_sequences = 3, .max_tokens = 100, .delay = milliseconds(5)});
  queue.Push(Make(1, now_));
  queue.Push(Make(1, now_ + milliseconds(4)));
  EXPECT_EQ(queue.ReadyAt(), now_ + milliseconds(5));
  queue.Push(Make(1, now_ + milliseconds(4)));
  EXPECT_LE(queue.ReadyAt(), now_ + milliseconds(4)) << "a full batch has nothing to wait for";
}

TEST_F(BatchQueueTest, DoesNotWaitForMoreThanTheFirstDeadlineAllows) {
  BatchQueue queue({.max_requests = 100, .max_sequences = 100, .max_tokens = 100, .delay = milliseconds(50)});
  for (int i = 0; i < 100; ++i) queue.NoteWork(/*tokens=*/2, milliseconds(3));
  queue.Push(Make(1, now_));
  auto urgent = Make(1, now_ + milliseconds(2));
  urgent->deadline = now_ + milliseconds(10);
  queue.Push(std::move(urgent));
  const TimePoint ready = queue.ReadyAt();
  EXPECT_LT(ready, now_ + milliseconds(10) - milliseconds(3)) << "the work takes 3 ms, and the answer has a way to go";
  EXPECT_GT(ready, now_ + milliseconds(4)) << "closed far too early";
  const Batch batch = queue.Take(ready);
  EXPECT_EQ(batch.tasks.size(), 2u);
  EXPECT_EQ(batch.closed, BatchClosed::kDeadline);

  queue.Push(Make(1, now_));
  EXPECT_EQ(queue.ReadyAt(), now_ + milliseconds(50)) << "a deadline that has left the queue still binds it";
  EXPECT_EQ(queue.Take(now_ + milliseconds(50)).closed, BatchClosed::kDelay);
}

TEST_F(BatchQueueTest, KnowsTheFirstDeadlineOfWhatABatchLeavesBehind) {
  BatchQueue queue({.max_requests = 2, .max_sequences = 100, .max_tokens = 100, .delay = milliseconds(50)});
  queue.Push(Make(1, now_));
  queue.Push(Make(1, now_));
  auto urgent = Make(1, now_);
  urgent->deadline = now_ + milliseconds(20);
  queue.Push(std::move(urgent));
  EXPECT_EQ(queue.Take(now_).closed, BatchClosed::kMaxRequests);
  ASSERT_EQ(queue.size(), 1u);
  EXPECT_LT(queue.ReadyAt(), now_ + milliseconds(20));
  EXPECT_GT(queue.ReadyAt(), now_);
}

TEST(WorkEstimateTest, IsZeroUntilSomethingWasMeasured) {
  EXPECT_EQ(WorkEstimate().For(1000), Clock::duration::zero());
}

TEST(WorkEstimateTest, ComesToWhatIsMeasuredAndFollowsIt) {
  WorkEstimate work;
  for (int i = 0; i < 100; ++i) work.Add(1000, milliseconds(4));
  EXPECT_NEAR(std::chrono::duration<double>(work.For(1000)).count(), 4e-3, 1e-4);
  for (int i = 0; i < 100; ++i) work.Add(1000, milliseconds(1));
  EXPECT_NEAR(std::chrono::duration<double>(work.For(1000)).count(), 1e-3, 1e-4);
}

TEST(WorkEstimateTest, AllowsForHowMuchTheWorkVaries) {
  WorkEstimate work;
  for (int i = 0; i < 100; ++i) work.Add(1000, milliseconds(i % 2 == 0 ? 1 : 3));
  EXPECT_GT(work.For(1000), milliseconds(3)) << "half of the batches would be late";
}

TEST(WorkEstimateTest, TakesOneStallForNoWork) {
  WorkEstimate work;
  for (int i = 0; i < 100; ++i) work.Add(1000, std::chrono::microseconds(10 + i % 2));
  work.Add(1000, milliseconds(5));
  EXPECT_LT(work.For(1000), std::chrono::microseconds(100));
}

TEST(WorkEstimateTest, GrowsWithTheTokensFromASmallerSizeAndNotFromALargerOne) {
  WorkEstimate work;
  for (int i = 0; i < 200; ++i) work.Add(1000, milliseconds(1));
  EXPECT_NEAR(std::chrono::duration<double>(work.For(8000)).count(), 8e-3, 1e-3);
  EXPECT_NEAR(std::chrono::duration<double>(work.For(10)).count(), 1e-3, 1e-4);
}

TEST(TaskTest, IsRefusedWhenNobodyAnswersIt) {
  RecordingResponder responder;
  { Task().AnswerTo(responder); }
  EXPECT_EQ(responder.answers(), 1);
  EXPECT_EQ(responder.refusal()->code, grpc::StatusCode::INTERNAL);
}

TEST(TaskTest, IsAnsweredOnce) {
  RecordingResponder responder;
  {
    Task task;
    task.AnswerTo(responder);
    task.Refuse(Cancelled());
  }
  EXPECT_EQ(responder.answers(), 1);
}

}  // namespace
}  // namespace nsa::metadata::server
