#include "client/load_loop.h"

#include <sys/prctl.h>

#include <algorithm>
#include <thread>
#include <utility>

#include "client/failure.h"

namespace nsa::metadata::client {

void LoadLoop::Run() {
  open_calls_ = calls_.size();
  {
    MutexLock lock(&mutex_);
    all_sent_ = closed_loop();
    if (closed_loop()) {
      under_way_ = static_cast<int64_t>(slots_.size());
    } else {
      for (const auto& slot : slots_) free_.push_back(slot.get());
    }
  }
  std::thread pacer;
  if (closed_loop()) {
    for (const auto& slot : slots_) slot->Send(LoadClock::now());
  } else {
    pacer = std::thread([this] { Pace(); });
  }
  void* tag = nullptr;
  bool ok = false;
  while (queue_.Next(&tag, &ok)) {
    static_cast<LoadTag*>(tag)->proceed(ok);
    CloseIfIdle();
  }
  if (pacer.joinable()) pacer.join();
}

void LoadLoop::Pace() {
  prctl(PR_SET_TIMERSLACK, 1);  // nanosecond; the usual 50 us would be the latency's
  for (LoadClock::time_point due = schedule_.begin; due < schedule_.end; due += schedule_.interval) {
    std::this_thread::sleep_until(due);
    if (LoadSlot* const slot = Take(due)) slot->Send(due);
    MutexLock lock(&mutex_);
    if (server_gone_) break;
  }
  MutexLock lock(&mutex_);
  all_sent_ = true;
  all_sent_alarm_.Set(&queue_, std::chrono::system_clock::now(), &all_sent_tag_);
}

LoadSlot* LoadLoop::Take(LoadClock::time_point due) {
  MutexLock lock(&mutex_);
  if (server_gone_) return nullptr;
  if (free_.empty()) {
    waiting_.push_back(due);
    ++result_.waited;
    return nullptr;
  }
  LoadSlot* const slot = free_.front();
  free_.pop_front();
  ++under_way_;
  return slot;
}

void LoadLoop::Ended(LoadSlot& slot, LoadClock::time_point when, const Outcome& outcome, bool is_last) {
  ended_.fetch_add(1, std::memory_order_relaxed);
  LoadClock::time_point start = when;
  {
    MutexLock lock(&mutex_);
    Count(slot.start(), when, outcome);
    // A connection that was cut is made anew for the next call.
    constexpr int kMostUnreachable = 2;
    const bool unreachable = ExitCodeOf(outcome.status) == kUnreachable;
    if (slot.CountUnreachable(unreachable) == kMostUnreachable || is_last) return GiveUp(when);
    const bool again = closed_loop() ? when < schedule_.end : !waiting_.empty();
    if (!again) {
      --under_way_;
      free_.push_back(&slot);
      return;
    }
    if (!closed_loop()) {
      start = waiting_.front();
      waiting_.pop_front();
    }
  }
  slot.Send(closed_loop() ? LoadClock::now() : start);
}

void LoadLoop::GiveUp(LoadClock::time_point when) {
  --under_way_;
  if (++result_.given_up < static_cast<int64_t>(slots_.size())) return;
  server_gone_ = when;
  waiting_.clear();
}

void LoadLoop::Count(LoadClock::time_point start, LoadClock::time_point when, const Outcome& outcome) {
  const bool measured =
      closed_loop() ? when >= schedule_.measured && when < schedule_.end : start >= schedule_.measured;
  if (!measured && outcome.status.ok() && outcome.difference.empty()) return;
  result_.tally.Count(outcome.status, request_.reply().total_tokens(), outcome.difference, when - start);
  if (outcome.timing) result_.timings.push_back(*outcome.timing);
}

LoadResult LoadLoop::TakeResult() {
  MutexLock lock(&mutex_);
  const LoadClock::time_point end =
      server_gone_ ? std::clamp(*server_gone_, schedule_.measured, schedule_.end) : schedule_.end;
  result_.tally.wall = end - schedule_.measured;
  return std::move(result_);
}

void LoadLoop::CloseIfIdle() {
  if (closing_) return;
  {
    MutexLock lock(&mutex_);
    if (!all_sent_ || under_way_ > 0 || !waiting_.empty()) return;
  }
  closing_ = true;
  for (const auto& call : calls_) call->Close();
  if (open_calls_ == 0) queue_.Shutdown();
}

void LoadLoop::CallClosed() {
  if (--open_calls_ == 0 && closing_) queue_.Shutdown();
}

}  // namespace nsa::metadata::client
