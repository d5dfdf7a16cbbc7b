#include "server/batcher.h"

#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "kernels/cpu.h"
#include "server/held_answers.h"

namespace nsa::metadata::server {
namespace {

// What a request has of its own, whatever batch it was in: to be known once `times.launched` is.
void AddOwn(const Task& task, Journey& journey) {
  const StageTimes& times = task.times;
  journey.parse_ns = Nanoseconds(times.arrived, times.parsed);
  journey.admit_ns = Nanoseconds(times.parsed, times.admitted);
  journey.queue_ns = Nanoseconds(times.admitted, times.launched);
  journey.num_sequences = static_cast<uint32_t>(task.expansion.seq_lens.size());
  journey.total_tokens = task.expansion.total_tokens;
}

}  // namespace

Batcher::Batcher(Options options, kernels::BackendKind backend, std::vector<std::unique_ptr<kernels::Lane>> lanes,
                 OutputPool& pool, Metrics& metrics)
    : options_(std::move(options)),
      backend_(backend),
      lanes_(std::move(lanes)),
      pool_(pool),
      metrics_(metrics),
      queue_(options_.policy),
      small_batch_lanes_(options_.small_batch_lanes) {
  for (const auto& lane : lanes_) free_lanes_.push_back(lane.get());
  for (size_t i = 0; i < lanes_.size(); ++i) workers_.emplace_back([this] { Work(); });
}

Batcher::~Batcher() {
  {
    MutexLock lock(&mutex_);
    stopping_ = true;
    changed_.SignalAll();
  }
  for (std::thread& worker : workers_) worker.join();
}

std::optional<NoRoom> Batcher::Submit(std::unique_ptr<Task>* task) {
  MutexLock lock(&mutex_);
  if (const std::optional<NoRoom> why = CheckRoom((*task)->account)) return why;
  TimePoint now = Clock::now();
  (*task)->times.admitted = now;
  metrics_.Admitted();
  queue_.Push(std::move(*task));
  if (options_.failpoints != nullptr) {
    mutex_.Unlock();
    Reached(Step::kEnqueued);
    now = Clock::now();
    mutex_.Lock();
  }
  if (!HasLane() || queue_.size() == 0) return std::nullopt;  // a thread that is busy now takes it when it is done
  if (!Ready(now) || IsLong()) {
    changed_.Signal();  // a worker keeps the delay, or does the work
    return std::nullopt;
  }
  kernels::Lane* lane = free_lanes_.back();
  free_lanes_.pop_back();
  RunOn(lane, kBatchesInARow, now);
  return std::nullopt;
}

std::optional<NoRoom> Batcher::CheckRoom(Account account) const {
  const size_t waiting = queue_.size();
  if (waiting >= options_.max_queue_requests) return NoRoom::kQueue;
  if (account == kNoAccount || 2 * waiting <= options_.max_queue_requests) return std::nullopt;
  const int64_t share = ShareOf(options_.caller_share, static_cast<int64_t>(options_.max_queue_requests));
  return queue_.requests_of(account) < share ? std::nullopt : std::optional(NoRoom::kQueueShare);
}

bool Batcher::HasLane() const { return !free_lanes_.empty() && MayStart(); }

bool Batcher::MayStart() const {
  return small_batches_ < small_batch_lanes_ || queue_.total_tokens() >= options_.small_batch_tokens;
}

bool Batcher::IsLong() const {
  return queue_.total_tokens() > options_.max_inline_tokens || queue_.WorkWaiting() > options_.max_inline_time;
}

size_t Batcher::busy_lanes() const {
  MutexLock lock(&mutex_);
  return lanes_.size() - free_lanes_.size();
}

size_t Batcher::queue_requests() const {
  MutexLock lock(&mutex_);
  return queue_.size();
}

void Batcher::RunOn(kernels::Lane* lane, int limit, TimePoint now) {
  for (int batches = 0;;) {
    const bool others = batches > 0 || queue_.size() > 1;
    Batch batch = queue_.Take(now);
    const int64_t tokens = batch.total_tokens;
    const size_t small = tokens < options_.small_batch_tokens ? 1 : 0;
    small_batches_ += small;
    mutex_.Unlock();
    // What this thread's own queue holds back was to wait for its next event, not for others' work.
    if (others) HeldAnswers::ReleaseOfThisThread();
    const TimePoint framed = Run(*lane, std::move(batch), now);
    mutex_.Lock();
    small_batches_ -= small;
    if (tokens > 0) queue_.NoteWork(tokens, framed - now);
    if (queue_.size() == 0 || ++batches == limit) break;
    if (limit != 0 && IsLong()) break;
    if (!MayStart()) break;  // those that are under way take the rest
    now = Clock::now();
    if (!Ready(now) && !stopping_) break;
  }
  free_lanes_.push_back(lane);
  if (queue_.size() > 0) changed_.Signal();
}

void Batcher::Work() {
  MutexLock lock(&mutex_);
  for (;;) {
    if (stopping_ && queue_.size() == 0) return;
    const TimePoint now = Clock::now();
    if (HasLane() && (Ready(now) || (stopping_ && queue_.size() > 0))) {
      kernels::Lane* lane = free_lanes_.back();
      free_lanes_.pop_back();
      RunOn(lane, /*limit=*/0, now);
      if (stopping_) changed_.SignalAll();
    } else if (!HasLane() || queue_.size() == 0) {
      changed_.Wait(mutex_);
    } else {
      changed_.WaitUntil(mutex_, queue_.ReadyAt());
    }
  }
}

TimePoint Batcher::Run(kernels::Lane& lane, Batch batch, TimePoint launched) {
  Reached(Step::kBatchClosed);
  for (const auto& task : batch.expired) {
    metrics_.Expired(Stage::kQueue);
    RefuseWaiting(*task, task->Late(launched), launched);
  }
  for (const auto& task : batch.cancelled) {
    metrics_.Cancelled(Stage::kQueue);
    RefuseWaiting(*task, Cancelled(), launched);
  }
  return batch.tasks.empty() ? launched : Launch(lane, batch, launched);
}

void Batcher::Pack(kernels::Lane& lane, const Batch& batch) {
  kernels::RequestBatch& requests = lane.batch();
  requests.Clear();
  for (const auto& task : batch.tasks) {
    if (!task->permit) continue;
    const Expansion& e = task->expansion;
    // It fits: the queue's policy is the lanes' limits.
    requests.Add(e.spec, e.extend_seq_lens, e.seq_lens, e.total_tokens, e.layout.Pointers(task->permit.data()));
  }
}

kernels::Kernel Batcher::Compute(kernels::Lane& lane, Batch& batch) {
  if (!device_lost()) {
    const absl::StatusOr<kernels::Kernel> kernel = lane.Expand();
    if (kernel.ok()) return *kernel;
    LoseDevice(kernel.status());
    // The device may still write to those they had.
    for (const auto& task : batch.tasks) pool_.Renew(task->permit);
    Pack(lane, batch);
  }
  kernels::ExpandOnCpu(lane.batch());
  return kernels::Kernel::kCpu;
}

void Batcher::LoseDevice(const absl::Status& why) {
  metrics_.BackendFault(backend_, why);
  pool_.LeaveMemory();
  if (device_lost_.exchange(true)) return;
  {
    MutexLock lock(&mutex_);
    small_batch_lanes_ = SIZE_MAX;
    changed_.SignalAll();
  }
  if (options_.device_lost) options_.device_lost(why);
}

TimePoint Batcher::Launch(kernels::Lane& lane, Batch& batch, TimePoint launched) {
  for (const auto& task : batch.tasks) task->times.launched = launched;
  Pack(lane, batch);
  Reached(Step::kUploaded);
  const TimePoint sent = Clock::now();
  const kernels::Kernel kernel = Compute(lane, batch);
  const TimePoint done = Clock::now();
  Reached(Step::kKernelDone);
  Journey journey;
  journey.pack_ns = Nanoseconds(launched, sent);
  journey.device_ns = Nanoseconds(sent, done);
  journey.batch_requests = static_cast<uint32_t>(batch.tasks.size());
  journey.batch_tokens = batch.total_tokens;
  journey.kernel = kernel;
  metrics_.BatchDone({.requests = batch.tasks.size(),
                      .sequences = static_cast<size_t>(batch.num_sequences),
                      .tokens = static_cast<size_t>(batch.total_tokens),
                      .closed = batch.closed,
                      .kernel = kernel,
                      .pack_ns = journey.pack_ns,
                      .device_ns = journey.device_ns});
  TimePoint framed = done;
  for (const auto& task : batch.tasks) {
    HeldAnswers::ReleaseOldOfThisThread();
    if (task->permit) {
      framed = Answer(*task, journey, done);
    } else {
      task->Refuse(Later(v1::REFUSAL_REASON_BUDGET_FULL,
                         "the device failed, and no room for the output was left in one piece", 0, 0,
                         std::chrono::milliseconds(50)));
    }
  }
  return framed;
}

void Batcher::RefuseWaiting(Task& task, Refusal refusal, TimePoint now) {
  task.times.launched = now;
  AddOwn(task, refusal.journey.emplace());
  task.Refuse(refusal);
}

v1::Timing Batcher::TimingOf(const Journey& journey, TimePoint done) const {
  v1::Timing timing;
  timing.set_parse_ns(journey.parse_ns);
  timing.set_admit_ns(journey.admit_ns);
  timing.set_queue_ns(journey.queue_ns);
  timing.set_pack_ns(journey.pack_ns);
  timing.set_device_ns(journey.device_ns);
  timing.set_frame_ns(Nanoseconds(done, Clock::now()));
  timing.set_batch_requests(journey.batch_requests);
  timing.set_batch_tokens(static_cast<uint32_t>(journey.batch_tokens));
  // A device may leave a batch to the CPU.
  const bool cpu = journey.kernel == kernels::Kernel::kCpu;
  timing.set_backend(static_cast<v1::Backend>(cpu ? kernels::BackendKind::kCpu : backend_));
  return timing;
}

TimePoint Batcher::Answer(Task& task, Journey journey, TimePoint done) {
  const Expansion& e = task.expansion;
  AddOwn(task, journey);
  std::optional<v1::Timing> timing;
  if (e.include_timing) timing = TimingOf(journey, done);
  const ReplyScalars scalars = {.request_id = e.request_id,
                                .total_tokens = e.total_tokens,
                                .mode = static_cast<v1::SequenceMode>(e.spec.mode),
                                .timing = timing ? &*timing : nullptr};
  Messages reply = e.layout.Frame(scalars, task.permit, pool_);
  task.permit = OutputPermit();  // the reply has what it needs of it
  journey.framed = Clock::now();
  journey.frame_ns = Nanoseconds(done, journey.framed);
  metrics_.TaskDone(journey);
  Reached(Step::kReplying);
  task.Reply(std::move(reply), journey);
  return journey.framed;
}

}  // namespace nsa::metadata::server
