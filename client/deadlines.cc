#include "client/deadlines.h"

#include <vector>

namespace nsa::metadata::client {

Deadlines::Id Deadlines::Add(absl::Time deadline, std::function<void()> passed) {
  MutexLock lock(&mutex_);
  const Id id(deadline + kGrace, next_++);
  waiting_.emplace(id, std::move(passed));
  SetAlarm();
  return id;
}

bool Deadlines::Remove(const Id& id) {
  std::function<void()> removed;  // what it holds may end outside of the lock
  MutexLock lock(&mutex_);
  const auto at = waiting_.find(id);
  if (at == waiting_.end()) return false;
  removed = std::move(at->second);
  waiting_.erase(at);
  return true;
}

void Deadlines::Clear() {
  std::map<Id, std::function<void()>> removed;
  MutexLock lock(&mutex_);
  removed.swap(waiting_);
  if (alarm_set_) alarm_->Cancel();
  while (alarm_set_) alarm_done_.Wait(mutex_);
}

void Deadlines::SetAlarm() {
  if (waiting_.empty()) return;
  const absl::Time first = waiting_.begin()->first.first;
  if (alarm_set_) {
    // It runs at once then, and is set anew.
    if (first < alarm_at_) alarm_->Cancel();
    return;
  }
  alarm_set_ = true;
  alarm_at_ = first;
  alarm_ = std::make_unique<grpc::Alarm>();
  alarm_->Set(absl::ToChronoTime(first), [self = shared_from_this()](bool) { self->OnAlarm(); });
}

void Deadlines::OnAlarm() {
  std::vector<std::function<void()>> passed;
  // It keeps this alive, and would for ever.
  std::unique_ptr<grpc::Alarm> done;
  {
    MutexLock lock(&mutex_);
    alarm_set_ = false;
    done = std::move(alarm_);
    const absl::Time now = absl::Now();
    while (!waiting_.empty() && waiting_.begin()->first.first <= now) {
      passed.push_back(std::move(waiting_.begin()->second));
      waiting_.erase(waiting_.begin());
    }
    SetAlarm();
    alarm_done_.SignalAll();
  }
  for (const std::function<void()>& run : passed) run();
}

}  // namespace nsa::metadata::client
