#include "client/replay_steps.h"

#include <algorithm>
#include <utility>

namespace nsa::metadata::client {

Request Step::ToRequest(v1::SequenceMode mode) const {
  Request request(mode);
  request.extend_seq_lens = extend_seq_lens;
  request.seq_lens = seq_lens;
  request.nsa_index_topk = ReplaySteps::kNsaIndexTopk;
  return request;
}

ReplaySteps::ReplaySteps(std::vector<Invocation> invocations, Options options)
    : invocations_(std::move(invocations)), options_(options), random_(options.seed) {}

std::optional<Step> ReplaySteps::Next() {
  while (ready_.empty()) {
    if (running_.empty() && next_arrival_ == invocations_.size()) return std::nullopt;
    Advance();
  }
  Step step = std::move(ready_.front());
  ready_.pop_front();
  return step;
}

double ReplaySteps::progress() const {
  return invocations_.empty() ? 1 : static_cast<double>(next_arrival_) / static_cast<double>(invocations_.size());
}

void ReplaySteps::Advance() {
  if (running_.empty()) {
    // Nothing happens until the next arrival, which may be hours away.
    absl::Duration rest;
    step_ = absl::IDivDuration(ArrivalOf(next_arrival_), kStep, &rest);
  }
  Decode();
  Prefill();
  ++step_;
}

void ReplaySteps::Decode() {
  const absl::Duration now = step_ * kStep;
  std::erase_if(running_, [now](const Running& running) { return running.end <= now; });
  bool continues = false;
  for (const Running& running : running_) {
    absl::Duration rest;
    const int64_t generated = absl::IDivDuration(now - running.arrival, kTokenTime, &rest);
    // The top three bits: 1 to 8, each as likely, without a distribution of the library's own making.
    const auto extend_seq_len = static_cast<int32_t>(1 + (random_() >> 61));
    Append(Step::Kind::kDecode, continues, extend_seq_len, static_cast<int32_t>(running.context_tokens + generated));
    continues = true;
  }
}

void ReplaySteps::Prefill() {
  const absl::Duration end = (step_ + 1) * kStep;
  bool continues = false;
  for (; next_arrival_ < invocations_.size() && ArrivalOf(next_arrival_) < end; ++next_arrival_) {
    const Invocation& invocation = invocations_[next_arrival_];
    const absl::Duration arrival = ArrivalOf(next_arrival_);
    Append(Step::Kind::kPrefill, continues, invocation.context_tokens, invocation.context_tokens);
    continues = true;
    running_.push_back({arrival, arrival + invocation.generated_tokens * kTokenTime, invocation.context_tokens});
  }
}

void ReplaySteps::Append(Step::Kind kind, bool continues, int32_t extend_seq_len, int32_t seq_len) {
  if (!continues || ready_.back().total_tokens + extend_seq_len > options_.max_tokens) {
    Step& begun = ready_.emplace_back();
    begun.kind = kind;
    begun.trace_time = step_ * kStep;
    begun.continues = continues;
  }
  Step& step = ready_.back();
  step.extend_seq_lens.push_back(extend_seq_len);
  step.seq_lens.push_back(seq_len);
  step.total_tokens += extend_seq_len;
}

}  // namespace nsa::metadata::client
