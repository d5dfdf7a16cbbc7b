#include "client/replay_run.h"

#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/reference.h"

namespace nsa::metadata::client {

ReplayTally ReplayRun::Run(ReplaySteps& steps, const Progress& progress) {
  const Clock::time_point start = Clock::now();
  int64_t steps_sent = 0;
  uint64_t requests_sent = 0;
  while (std::optional<Step> step = steps.Next()) {
    if (!step->continues) {
      if (options_.max_steps > 0 && steps_sent == options_.max_steps) break;
      ++steps_sent;
    }
    WaitUntilBelow(options_.in_flight);
    Send(std::move(*step), requests_sent++);
    progress(steps_sent);
  }
  WaitUntilBelow(1);
  const absl::MutexLock lock(&mutex_);
  tally_.steps = steps_sent;
  tally_.Finish(Clock::now() - start);
  return std::move(tally_);
}

void ReplayRun::Send(Step step, uint64_t request_id) {
  {
    const absl::MutexLock lock(&mutex_);
    ++in_flight_;
  }
  const auto sent_step = std::make_shared<const Step>(std::move(step));
  Request request = sent_step->ToRequest(options_.mode);
  request.outputs = options_.outputs;
  request.request_id = request_id;
  const Clock::time_point start = Clock::now();
  sender_(request, [this, sent_step, request, start](const absl::StatusOr<v1::ExpandResponse>& response) {
    const Clock::duration latency = Clock::now() - start;
    std::string difference;
    if (options_.verify && response.ok()) difference = FirstDifference(*response, Reference(request));
    if (!difference.empty()) {
      difference = absl::StrCat("request ", request.request_id, ", trace time ",
                                absl::FormatDuration(sent_step->trace_time), ": ", difference);
    }
    Count(response, difference, latency);
  });
}

void ReplayRun::Count(const absl::StatusOr<v1::ExpandResponse>& response, const std::string& difference,
                      Clock::duration latency) {
  const absl::MutexLock lock(&mutex_);
  tally_.Count(response.status(), response.ok() ? response->total_tokens() : 0, difference, latency);
  --in_flight_;
}

void ReplayRun::WaitUntilBelow(int64_t in_flight) {
  const absl::MutexLock lock(&mutex_);
  const auto below = [this, in_flight]() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return in_flight_ < in_flight; };
  mutex_.Await(absl::Condition(&below));
}

}  // namespace nsa::metadata::client
