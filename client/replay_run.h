// Sends the steps of a trace to a server and counts what comes back.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "client/replay_sender.h"
#include "client/replay_steps.h"
#include "client/tally.h"

namespace nsa::metadata::client {

struct ReplayOptions {
  v1::SequenceMode mode = v1::SEQUENCE_MODE_CAUSAL;
  std::vector<v1::Output> outputs;
  // Requests that are under way at once, 1 or more.
  int64_t in_flight = 64;
  // Whether each reply is compared with the client's reference.
  bool verify = false;
  // Steps to send; 0: all.
  int64_t max_steps = 0;
};

// What a replay did.
struct ReplayTally : Tally {
  int64_t steps = 0;
};

// One closed-loop run: as many requests under way as asked, a new one for each that ends.
class ReplayRun {
 public:
  // Called after each request is sent, on the thread that calls Run.
  using Progress = std::function<void(int64_t steps_sent)>;

  ReplayRun(Sender sender, ReplayOptions options) : options_(std::move(options)), sender_(std::move(sender)) {}

  // Sends `steps` to their end or to max_steps. Blocks until every answer is there. Call it once.
  ReplayTally Run(ReplaySteps& steps, const Progress& progress);

 private:
  using Clock = std::chrono::steady_clock;

  void Send(Step step, uint64_t request_id);
  // Counts an outcome; `difference` says how a reply is wrong, or is empty.
  void Count(const absl::StatusOr<v1::ExpandResponse>& response, const std::string& difference,
             Clock::duration latency);
  void WaitUntilBelow(int64_t in_flight);

  const ReplayOptions options_;
  absl::Mutex mutex_;
  int64_t in_flight_ ABSL_GUARDED_BY(mutex_) = 0;
  ReplayTally tally_ ABSL_GUARDED_BY(mutex_);
  // The last, so that it goes first: it may wait for callbacks, which use the rest.
  const Sender sender_;
};

}  // namespace nsa::metadata::client
