// What is to be done when a time has come, unless it was taken back before.
#pragma once

#include <grpcpp/alarm.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "client/mutex.h"

namespace nsa::metadata::client {

// gRPC ends a call at its deadline, but for one that it is writing to a connection whose peer takes nothing: that one
// it lets wait until the connection is given up. So a call has a deadline here too. Thread-safe.
class Deadlines : public std::enable_shared_from_this<Deadlines> {
 public:
  using Id = std::pair<absl::Time, uint64_t>;

  // How long gRPC's own end of a call may take to come.
  static constexpr absl::Duration kGrace = absl::Milliseconds(50);

  // Has `passed` run, on a thread of gRPC's, kGrace after `deadline`, unless it is removed before.
  Id Add(absl::Time deadline, std::function<void()> passed);
  // Whether it was still there; else it has run, or is about to.
  bool Remove(const Id& id);
  // Forgets all that is there, and blocks until nothing is left to run. Nothing may be added any more.
  void Clear();

 private:
  void SetAlarm() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void OnAlarm();

  Mutex mutex_;
  CondVar alarm_done_;
  std::map<Id, std::function<void()>> waiting_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 0;
  // Set for `alarm_at_`, and not run yet. Until then it keeps this alive.
  bool alarm_set_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Time alarm_at_ ABSL_GUARDED_BY(mutex_);
  std::unique_ptr<grpc::Alarm> alarm_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nsa::metadata::client
