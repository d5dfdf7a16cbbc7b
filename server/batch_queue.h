// Which waiting requests make the next batch, and when: values and functions, no clock, no thread.
#pragma once

#include <cstddef>
#include <deque>
#include <memory>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "server/clock.h"
#include "server/task.h"
#include "server/work_estimate.h"

namespace nsa::metadata::server {

struct BatchPolicy {
  // A batch holds at most this many requests, sequences and tokens; one request always fits.
  int64_t max_requests = 0;
  int64_t max_sequences = 0;
  int64_t max_tokens = 0;
  // How long a request may wait for others while a lane is free, if its deadline allows it. 0: not at all.
  Clock::duration delay{0};
};

// Why a batch holds no more than it does. The metrics' `reason` label.
enum class BatchClosed : uint8_t {
  kQueueEmpty,    // nothing else waited
  kMaxSequences,  // the next one would have passed max_sequences
  kMaxTokens,     // the next one would have passed max_tokens
  kMaxRequests,   // it holds max_requests
  kDelay,         // nothing else waited, and its first request had waited for the delay
  kDeadline,      // nothing else waited, and the first deadline in it leaves no more time to wait
};
inline constexpr size_t kNumBatchClosed = 6;

struct Batch {
  absl::InlinedVector<std::unique_ptr<Task>, 4> tasks;
  // Left the queue without being launched; still to be answered.
  std::vector<std::unique_ptr<Task>> expired;
  std::vector<std::unique_ptr<Task>> cancelled;
  int64_t num_sequences = 0;
  int64_t total_tokens = 0;
  BatchClosed closed = BatchClosed::kQueueEmpty;
};

// First in, first out. Not thread-safe.
class BatchQueue {
 public:
  explicit BatchQueue(const BatchPolicy& policy) : policy_(policy) {}

  void Push(std::unique_ptr<Task> task);
  size_t size() const { return tasks_.size(); }
  // Of all that wait.
  int64_t total_tokens() const { return tokens_; }
  int64_t requests_of(Account account) const { return requests_of_[account]; }

  // When the next batch may be taken: at once when one is full, else when its first request has waited for the delay,
  // or earlier, so that every request in it is answered within its deadline. TimePoint::max() when nothing waits.
  TimePoint ReadyAt() const;

  // The next batch at `now`. Requests whose deadline has passed or whose caller has given up are in it, but not in
  // `tasks`.
  Batch Take(TimePoint now);

  // How long all that waits would take in one batch.
  Clock::duration WorkWaiting() const { return work_.For(tokens_); }

  // A batch of `tokens` tokens took this long, its replies included.
  void NoteWork(int64_t tokens, Clock::duration took) { work_.Add(tokens, took); }

 private:
  // A caller's deadline began on its way here, and the answer has a way to go: neither can be seen from here.
  static constexpr std::chrono::milliseconds kOnTheWay{1};

  bool Full() const;
  // When the batch has to be taken for the first deadline that waits.
  TimePoint LastMoment() const;
  // What closes `batch` before `next`; kQueueEmpty when nothing does.
  BatchClosed ClosedBefore(const Task& next, const Batch& batch) const;

  const BatchPolicy policy_;
  WorkEstimate work_;
  std::deque<std::unique_ptr<Task>> tasks_;
  TimePoint first_deadline_ = TimePoint::max();  // of all that wait
  int64_t sequences_ = 0;                        // of all that wait
  int64_t tokens_ = 0;
  std::vector<int32_t> requests_of_ = std::vector<int32_t>(kNumAccounts);
};

}  // namespace nsa::metadata::server
