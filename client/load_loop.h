// One thread's part of a load.
#pragma once

#include <grpcpp/alarm.h>
#include <grpcpp/channel.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include <atomic>
#include <chrono>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "client/load.h"
#include "client/mutex.h"
#include "client/reply_check.h"

namespace nsa::metadata::client {

using LoadClock = std::chrono::steady_clock;

// What is to happen when an operation of gRPC's is done.
struct LoadTag {
  std::function<void(bool ok)> proceed;
};

// A place for one request at a time.
class LoadSlot {
 public:
  virtual ~LoadSlot() = default;
  // Sends the request. Its latency counts from `start`. Any thread.
  void Send(LoadClock::time_point start) {
    start_ = start;
    Start();
  }
  LoadClock::time_point start() const { return start_; }
  // How many requests in a row reached no server, this one's outcome counted.
  int CountUnreachable(bool unreachable) { return unreachable_ = unreachable ? unreachable_ + 1 : 0; }

 private:
  virtual void Start() = 0;
  LoadClock::time_point start_;
  int unreachable_ = 0;
};

// Something that has to be ended before the queue is: a stream.
class LoadCall {
 public:
  virtual ~LoadCall() = default;
  // Begins to end; tells LoadLoop::CallClosed.
  virtual void Close() = 0;
};

// A completion queue with a share of the connections and requests. Run it on a thread of its own.
class LoadLoop {
 public:
  struct Schedule {
    LoadClock::time_point begin;     // of the load
    LoadClock::time_point measured;  // from here …
    LoadClock::time_point end;       // … to here
    // Between two requests of this loop; 0: closed.
    LoadClock::duration interval{0};
    std::chrono::system_clock::duration timeout{0};
  };

  LoadLoop(const BenchRequest& request, const Schedule& schedule)
      : schedule_(schedule), check_(request), request_(request) {}

  // Adds places for `in_flight` requests, each one a call of its own.
  void AddCalls(const std::shared_ptr<grpc::Channel>& channel, int64_t in_flight);
  // The same over a stream.
  void AddStream(const std::shared_ptr<grpc::Channel>& channel, int64_t in_flight);

  // Sends until the schedule's end. Blocks until every answer is there.
  void Run();

  int64_t ended() const { return ended_.load(std::memory_order_relaxed); }
  // Once Run has returned.
  LoadResult TakeResult();

  // For the slots and calls.
  grpc::CompletionQueue& queue() { return queue_; }
  const BenchRequest& request() const { return request_; }
  const Schedule& schedule() const { return schedule_; }
  // The slot's request has ended; its next one may begin before this returns, unless it is the slot's last. Any thread.
  void Ended(LoadSlot& slot, LoadClock::time_point when, const Outcome& outcome, bool is_last = false);
  // These two on the loop's thread. For unary calls; the second for streams.
  ReplyCheck& check() { return check_; }
  void CallClosed();

 private:
  bool closed_loop() const { return schedule_.interval == LoadClock::duration::zero(); }
  // One slot less.
  void GiveUp(LoadClock::time_point when) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Count(LoadClock::time_point start, LoadClock::time_point when, const Outcome& outcome)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Sends each request when it is due. Runs on a thread of its own.
  void Pace();
  // A free slot for the request due at this time; nullptr when it has to wait.
  LoadSlot* Take(LoadClock::time_point due);
  // Ends the calls once nothing is left to be sent or answered.
  void CloseIfIdle();

  const Schedule schedule_;
  ReplyCheck check_;
  const BenchRequest& request_;
  std::atomic<int64_t> ended_{0};
  bool closing_ = false;
  size_t open_calls_ = 0;

  Mutex mutex_;
  LoadResult result_ ABSL_GUARDED_BY(mutex_);
  int64_t under_way_ ABSL_GUARDED_BY(mutex_) = 0;
  bool all_sent_ ABSL_GUARDED_BY(mutex_) = false;
  // When all slots had given up, if they have.
  std::optional<LoadClock::time_point> server_gone_ ABSL_GUARDED_BY(mutex_);
  std::deque<LoadSlot*> free_ ABSL_GUARDED_BY(mutex_);
  // When the requests were due that wait for a free place.
  std::deque<LoadClock::time_point> waiting_ ABSL_GUARDED_BY(mutex_);

  // Before what has operations on it.
  grpc::CompletionQueue queue_;
  // Wakes the loop when all is sent.
  grpc::Alarm all_sent_alarm_;
  LoadTag all_sent_tag_{[](bool) {}};
  std::vector<std::unique_ptr<LoadCall>> calls_;
  std::vector<std::unique_ptr<LoadSlot>> slots_;
};

}  // namespace nsa::metadata::client
