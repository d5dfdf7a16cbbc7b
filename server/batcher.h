// Brings admitted requests to the lanes, many in one launch when they are busy.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "kernels/backend.h"
#include "server/account.h"
#include "server/batch_queue.h"
#include "server/clock.h"
#include "server/failpoints.h"
#include "server/journey.h"
#include "server/metrics.h"
#include "server/mutex.h"
#include "server/no_room.h"
#include "server/output_pool.h"
#include "server/refusal.h"
#include "server/task.h"

namespace nsa::metadata::server {

// The thread that submits a request runs it itself when a lane is free, and answers it: no hand-off, no timer; only a
// large one is a worker's. While all lanes are busy requests wait, and whoever finishes a batch takes what arrived
// meanwhile as its next one. A thread that has run a few batches for others passes its lane to a worker and returns to
// its own callers. Thread-safe.
class Batcher {
 public:
  struct Options {
    BatchPolicy policy;
    size_t max_queue_requests = 4'096;
    // A batch of more tokens goes to a worker, since it would keep the submitter from its other calls; so does one
    // that, by those before it, takes longer.
    int64_t max_inline_tokens = 131'072;
    Clock::duration max_inline_time = std::chrono::milliseconds(1);
    // While this many lanes are at batches of fewer than small_batch_tokens tokens, requests that would make another
    // such batch wait to share one: a device takes as long for a tenth of it.
    size_t small_batch_lanes = SIZE_MAX;
    int64_t small_batch_tokens = 65'536;
    // The part of the queue that one account may have while more than half of it is in use.
    double caller_share = 1;
    // Called once, with the reason, when a lane has failed: by a thread that answers calls and must not wait.
    std::function<void(const absl::Status& why)> device_lost;
    Failpoints* failpoints = nullptr;
  };

  // `lanes` hold batches of up to policy.max_sequences sequences; at least one.
  Batcher(Options options, kernels::BackendKind backend, std::vector<std::unique_ptr<kernels::Lane>> lanes,
          OutputPool& pool, Metrics& metrics);
  // Answers everything that was submitted, then returns.
  ~Batcher();

  // Takes `*task` and answers it, now or later; or, when the queue is full, says so and leaves it to the caller.
  std::optional<NoRoom> Submit(std::unique_ptr<Task>* task);

  size_t queue_requests() const;
  // Lanes that compute.
  size_t busy_lanes() const;

  // Whether a lane has failed: what it had at hand, and all from then on, is computed by the CPU, in the pool's spare
  // memory.
  bool device_lost() const { return device_lost_.load(std::memory_order_relaxed); }

 private:
  // A thread other than a worker runs this many batches in a row at most.
  static constexpr int kBatchesInARow = 4;

  // Runs batches on `lane` while the queue has them, `limit` at most (0: no limit); then the lane is free again. The
  // first one is ready at `now`.
  void RunOn(kernels::Lane* lane, int limit, TimePoint now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Work();
  // Returns when the last answer was complete.
  TimePoint Run(kernels::Lane& lane, Batch batch, TimePoint launched) ABSL_LOCKS_EXCLUDED(mutex_);
  TimePoint Launch(kernels::Lane& lane, Batch& batch, TimePoint launched);
  static void Pack(kernels::Lane& lane, const Batch& batch);
  // On the lane or, when that fails or one has failed before, on the CPU.
  kernels::Kernel Compute(kernels::Lane& lane, Batch& batch);
  void LoseDevice(const absl::Status& why) ABSL_LOCKS_EXCLUDED(mutex_);
  void Reached(Step step) const {
    if (options_.failpoints != nullptr) options_.failpoints->Reached(step);
  }
  // Whether the queue takes no more, or no more of `account`'s.
  std::optional<NoRoom> CheckRoom(Account account) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Refuses what waited until now and is not to be computed.
  static void RefuseWaiting(Task& task, Refusal refusal, TimePoint now);
  v1::Timing TimingOf(const Journey& journey, TimePoint done) const;
  // `journey` has what its batch has in common. Returns when the answer was complete.
  TimePoint Answer(Task& task, Journey journey, TimePoint done);
  // Whether what waits may be another batch under way.
  bool MayStart() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Whether there is also a lane for it.
  bool HasLane() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Whether the next batch is a worker's.
  bool IsLong() const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  bool Ready(TimePoint now) const ABSL_SHARED_LOCKS_REQUIRED(mutex_) { return queue_.ReadyAt() <= now; }

  const Options options_;
  const kernels::BackendKind backend_;
  const std::vector<std::unique_ptr<kernels::Lane>> lanes_;
  OutputPool& pool_;
  Metrics& metrics_;

  mutable Mutex mutex_;
  CondVar changed_;
  BatchQueue queue_ ABSL_GUARDED_BY(mutex_);
  std::vector<kernels::Lane*> free_lanes_ ABSL_GUARDED_BY(mutex_);
  size_t small_batches_ ABSL_GUARDED_BY(mutex_) = 0;  // being run
  size_t small_batch_lanes_ ABSL_GUARDED_BY(mutex_);
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> device_lost_{false};
  std::vector<std::thread> workers_;
};

}  // namespace nsa::metadata::server
