// Counts how requests ended, for the commands that send many.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/failure.h"
#include "client/json.h"

namespace nsa::metadata::client {

struct Tally {
  int64_t requests = 0;
  // Replies that came, and the tokens in them.
  int64_t ok = 0;
  int64_t tokens = 0;
  // Replies that are not the reference's, and how the first of them differ.
  int64_t wrong = 0;
  std::vector<std::string> differences;
  // Requests that the service refused, by reason, and that failed otherwise, by code.
  std::map<std::string, int64_t> refused;
  std::map<std::string, int64_t> errors;
  // What the first refusal of each reason and the first error of each code said.
  std::map<std::string, std::string> messages;
  // From the call to its outcome, whatever it was; in ascending order once Finish was called.
  std::vector<std::chrono::nanoseconds> latencies;
  // Those of refusals alone.
  std::vector<std::chrono::nanoseconds> refusal_latencies;
  std::chrono::nanoseconds wall = {};
  // The lowest that the outcomes ask for, but kOk only if all do.
  ExitCode exit_code = kOk;

  // Counts a request; `difference` says how its reply is wrong, or is empty.
  void Count(const absl::Status& status, int64_t reply_tokens, const std::string& difference,
             std::chrono::nanoseconds latency);
  // Adds what another one counted, but for the wall time.
  void Merge(const Tally& other);
  // Nothing more will be counted.
  void Finish(std::chrono::nanoseconds wall_time);

  // The least latency that a share `quantile` of the calls stays within, microseconds; NaN without a call.
  double LatencyUs(double quantile) const { return QuantileUs(latencies, quantile); }
  double RefusalLatencyUs(double quantile) const { return QuantileUs(refusal_latencies, quantile); }

 private:
  static double QuantileUs(const std::vector<std::chrono::nanoseconds>& sorted, double quantile);
};

// Lines for people, one for each kind of outcome, with what the first refusals and errors said, and one each for the
// time and the latencies.
std::string TallyText(const Tally& tally, bool verified);

// Adds the same to a JSON object; latencies in microseconds, null without a request.
void AddTally(const Tally& tally, bool verified, JsonObject& json);

}  // namespace nsa::metadata::client
