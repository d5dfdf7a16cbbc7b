// Turns a trace of invocations into the requests that an engine serving them would send, step by step.
#pragma once

#include <algorithm>
#include <cstdint>
#include <deque>
#include <optional>
#include <random>
#include <vector>

#include "absl/time/time.h"
#include "client/request.h"
#include "client/trace.h"

namespace nsa::metadata::client {

// The most tokens whose unary reply with `num_outputs` outputs is within the service's default limit, 4 MiB less
// 64 KiB: a value has 4 bytes, and 1 KiB is left for the other fields.
constexpr int64_t MaxReplyTokens(int64_t num_outputs) {
  return ((4 << 20) - (64 << 10) - (1 << 10)) / (4 * num_outputs);
}

// The same of a reply in chunks: within the service's default limits, 64 MiB and 4,194,304 tokens.
constexpr int64_t MaxStreamedTokens(int64_t num_outputs) {
  return std::min<int64_t>(4 << 20, ((64 << 20) - (64 << 10)) / (4 * num_outputs));
}

// One request's lengths: a step, or a part of one that is too large for a reply.
struct Step {
  enum class Kind { kDecode, kPrefill };

  Kind kind = Kind::kDecode;
  // When the step begins, from the trace's first arrival.
  absl::Duration trace_time;
  // Whether this is a further part of the step before it.
  bool continues = false;
  // [num_sequences] each, tokens.
  std::vector<int32_t> extend_seq_lens;
  std::vector<int32_t> seq_lens;
  // The sum of extend_seq_lens.
  int64_t total_tokens = 0;

  // A request for these lengths; it points into this step.
  Request ToRequest(v1::SequenceMode mode) const;
};

// The steps of a trace, one after the other. Trace time is cut into steps of kStep from the first arrival on. An
// invocation that arrives in a step is in its prefill: q = s = context. In the steps that begin later it is in the
// decode, until it has run for kTokenTime a generated token, counted from its arrival: s = context + generated so far,
// q = 1 to 8 at random. Steps without a sequence are left out. The same trace and options give the same steps on every
// machine. Not thread-safe.
class ReplaySteps {
 public:
  static constexpr absl::Duration kStep = absl::Milliseconds(20);
  static constexpr absl::Duration kTokenTime = absl::Milliseconds(30);
  static constexpr int32_t kNsaIndexTopk = 2048;

  struct Options {
    uint64_t seed = 1;
    // Tokens in one Step; the invocations of a larger step go into several. One invocation that is larger alone stays
    // whole.
    int64_t max_tokens = MaxReplyTokens(2);
  };

  // `invocations` by arrival, as ReadTrace answers them.
  ReplaySteps(std::vector<Invocation> invocations, Options options);

  // The next step; nothing at the end.
  std::optional<Step> Next();

  // How much of the arrivals lies behind, 0 to 1.
  double progress() const;

 private:
  // An invocation in its decode phase, times from the first arrival.
  struct Running {
    absl::Duration arrival;
    absl::Duration end;
    int32_t context_tokens;
  };

  absl::Duration ArrivalOf(size_t index) const { return invocations_[index].arrival - invocations_.front().arrival; }
  void Advance();
  void Decode();
  void Prefill();
  void Append(Step::Kind kind, bool continues, int32_t extend_seq_len, int32_t seq_len);

  const std::vector<Invocation> invocations_;
  const Options options_;
  std::mt19937_64 random_;
  // The step that Advance does next begins at step_ * kStep.
  int64_t step_ = 0;
  // The first invocation that has not arrived.
  size_t next_arrival_ = 0;
  // By arrival.
  std::vector<Running> running_;
  // Made and not yet given out.
  std::deque<Step> ready_;
};

}  // namespace nsa::metadata::client
