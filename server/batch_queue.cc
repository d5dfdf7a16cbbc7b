#include "server/batch_queue.h"

#include <algorithm>
#include <utility>

namespace nsa::metadata::server {
namespace {

int64_t Sequences(const Task& task) { return static_cast<int64_t>(task.expansion.seq_lens.size()); }

}  // namespace

void BatchQueue::Push(std::unique_ptr<Task> task) {
  sequences_ += Sequences(*task);
  tokens_ += task->expansion.total_tokens;
  first_deadline_ = std::min(first_deadline_, task->deadline);
  ++requests_of_[task->account];
  tasks_.push_back(std::move(task));
}

bool BatchQueue::Full() const {
  return static_cast<int64_t>(tasks_.size()) >= policy_.max_requests || sequences_ >= policy_.max_sequences ||
         tokens_ >= policy_.max_tokens;
}

BatchClosed BatchQueue::ClosedBefore(const Task& next, const Batch& batch) const {
  if (batch.tasks.empty()) return BatchClosed::kQueueEmpty;
  if (static_cast<int64_t>(batch.tasks.size()) >= policy_.max_requests) return BatchClosed::kMaxRequests;
  if (batch.num_sequences + Sequences(next) > policy_.max_sequences) return BatchClosed::kMaxSequences;
  if (batch.total_tokens + next.expansion.total_tokens > policy_.max_tokens) return BatchClosed::kMaxTokens;
  return BatchClosed::kQueueEmpty;
}

TimePoint BatchQueue::ReadyAt() const {
  if (tasks_.empty()) return TimePoint::max();
  const TimePoint first = tasks_.front()->times.admitted;
  if (Full() || policy_.delay == Clock::duration::zero()) return first;
  return std::min(first + policy_.delay, LastMoment());
}

TimePoint BatchQueue::LastMoment() const {
  if (first_deadline_ == TimePoint::max()) return first_deadline_;
  return first_deadline_ - work_.For(tokens_) - kOnTheWay;
}

Batch BatchQueue::Take(TimePoint now) {
  Batch batch;
  if (policy_.delay > Clock::duration::zero() && !tasks_.empty()) {
    if (now >= tasks_.front()->times.admitted + policy_.delay) {
      batch.closed = BatchClosed::kDelay;
    } else if (now >= LastMoment()) {
      batch.closed = BatchClosed::kDeadline;
    }
  }
  while (!tasks_.empty()) {
    std::unique_ptr<Task>& next = tasks_.front();
    const int64_t sequences = Sequences(*next);
    const int64_t tokens = next->expansion.total_tokens;
    const Account account = next->account;
    // The deadline first: gRPC cancels a call whose deadline has passed.
    if (next->deadline <= now) {
      batch.expired.push_back(std::move(next));
    } else if (next->cancelled()) {
      batch.cancelled.push_back(std::move(next));
    } else {
      if (const BatchClosed full = ClosedBefore(*next, batch); full != BatchClosed::kQueueEmpty) {
        batch.closed = full;
        break;
      }
      batch.num_sequences += sequences;
      batch.total_tokens += tokens;
      batch.tasks.push_back(std::move(next));
    }
    tasks_.pop_front();
    sequences_ -= sequences;
    tokens_ -= tokens;
    --requests_of_[account];
  }
  if (policy_.delay == Clock::duration::zero()) return batch;  // nothing waits for its deadline
  first_deadline_ = TimePoint::max();
  for (const auto& task : tasks_) first_deadline_ = std::min(first_deadline_, task->deadline);
  return batch;
}

}  // namespace nsa::metadata::server
