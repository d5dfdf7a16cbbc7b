#include "client/replay_report.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/json.h"

namespace nsa::metadata::client {
namespace {

constexpr struct {
  const char* name;
  const char* json_name;
  double quantile;
} kQuantiles[] = {{"min", "min", 0},    {"p50", "p50", 0.5},       {"p90", "p90", 0.9},
                  {"p99", "p99", 0.99}, {"p99.9", "p99_9", 0.999}, {"max", "max", 1}};

double SecondsOf(std::chrono::nanoseconds duration) { return std::chrono::duration<double>(duration).count(); }

// The least latency that a share `quantile` of the calls stays within, microseconds; NaN without a call.
double LatencyUs(const ReplayTally& tally, double quantile) {
  if (tally.latencies.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto count = static_cast<double>(tally.latencies.size());
  const double rank = std::clamp(std::ceil(quantile * count), 1.0, count);
  return SecondsOf(tally.latencies[static_cast<size_t>(rank) - 1]) * 1e6;
}

double PerSecond(int64_t count, const ReplayTally& tally) {
  return static_cast<double>(count) / std::max(SecondsOf(tally.wall), 1e-9);
}

// "QUEUE_FULL 3, DRAINING 1", or "0".
std::string CountsText(const std::map<std::string, int64_t>& counts) {
  return counts.empty() ? "0" : absl::StrJoin(counts, ", ", absl::PairFormatter(" "));
}

JsonObject CountsJson(const std::map<std::string, int64_t>& counts) {
  JsonObject json;
  for (const auto& [name, count] : counts) json.Add(name, count);
  return json;
}

}  // namespace

std::string ReplayText(const ReplayTally& tally, bool verified) {
  std::string text;
  for (const std::string& difference : tally.differences) absl::StrAppend(&text, "wrong: ", difference, "\n");
  absl::StrAppend(&text, "steps     ", tally.steps, "\n", "requests  ", tally.requests, "\n");
  absl::StrAppend(&text, "replies   ", tally.ok, " with ", tally.tokens, " tokens\n");
  absl::StrAppend(&text, "wrong     ", verified ? absl::StrCat(tally.wrong) : "not checked", "\n");
  absl::StrAppend(&text, "refused   ", CountsText(tally.refused), "\n");
  absl::StrAppend(&text, "errors    ", CountsText(tally.errors), "\n");
  absl::StrAppendFormat(&text, "time      %.3f s, %.0f calls/s, %.0f tokens/s\n", SecondsOf(tally.wall),
                        PerSecond(tally.requests, tally), PerSecond(tally.tokens, tally));
  absl::StrAppend(&text, "latency  ");
  for (const auto& [name, json_name, quantile] : kQuantiles) {
    absl::StrAppendFormat(&text, " %s %.0f", name, LatencyUs(tally, quantile));
  }
  return text + " us\n";
}

std::string ReplayJson(const ReplayTally& tally, bool verified) {
  JsonObject latency;
  for (const auto& [name, json_name, quantile] : kQuantiles) latency.Add(json_name, LatencyUs(tally, quantile));
  JsonObject json;
  json.Add("steps", tally.steps).Add("requests", tally.requests).Add("ok", tally.ok).Add("tokens", tally.tokens);
  json.Add("verified", verified).Add("wrong", tally.wrong).AddJson("differences", JsonArray(tally.differences));
  json.Add("refused", CountsJson(tally.refused)).Add("errors", CountsJson(tally.errors));
  json.Add("wall_s", SecondsOf(tally.wall)).Add("calls_per_s", PerSecond(tally.requests, tally));
  json.Add("tokens_per_s", PerSecond(tally.tokens, tally)).Add("latency_us", latency);
  return json.str() + "\n";
}

}  // namespace nsa::metadata::client
