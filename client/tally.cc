#include "client/tally.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/status.h"

namespace nsa::metadata::client {
namespace {

constexpr size_t kMaxDifferences = 10;

constexpr struct {
  const char* name;
  const char* json_name;
  double quantile;
} kQuantiles[] = {{"min", "min", 0},    {"p50", "p50", 0.5},       {"p90", "p90", 0.9},
                  {"p99", "p99", 0.99}, {"p99.9", "p99_9", 0.999}, {"max", "max", 1}};

double SecondsOf(std::chrono::nanoseconds duration) { return std::chrono::duration<double>(duration).count(); }

double PerSecond(int64_t count, const Tally& tally) {
  return tally.wall.count() > 0 ? static_cast<double>(count) / SecondsOf(tally.wall) : 0;
}

ExitCode Worse(ExitCode one, ExitCode other) {
  if (one == kOk || other == kOk) return std::max(one, other);
  return std::min(one, other);
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

void Tally::Count(const absl::Status& status, int64_t reply_tokens, const std::string& difference,
                  std::chrono::nanoseconds latency) {
  ++requests;
  latencies.push_back(latency);
  if (status.ok()) {
    ++ok;
    tokens += reply_tokens;
  } else {
    const std::string reason = ReasonOf(status);
    const bool refusal = ViolationOf(status).has_value();
    ++(refusal ? refused : errors)[reason];
    if (refusal) refusal_latencies.push_back(latency);
    messages.try_emplace(reason, status.message());
  }
  if (!difference.empty()) {
    ++wrong;
    if (differences.size() < kMaxDifferences) differences.push_back(difference);
  }
  exit_code = Worse(exit_code, difference.empty() ? ExitCodeOf(status) : kWrongBytes);
}

void Tally::Merge(const Tally& other) {
  requests += other.requests;
  ok += other.ok;
  tokens += other.tokens;
  wrong += other.wrong;
  for (const std::string& difference : other.differences) {
    if (differences.size() < kMaxDifferences) differences.push_back(difference);
  }
  for (const auto& [reason, count] : other.refused) refused[reason] += count;
  for (const auto& [code, count] : other.errors) errors[code] += count;
  messages.insert(other.messages.begin(), other.messages.end());
  latencies.insert(latencies.end(), other.latencies.begin(), other.latencies.end());
  refusal_latencies.insert(refusal_latencies.end(), other.refusal_latencies.begin(), other.refusal_latencies.end());
  exit_code = Worse(exit_code, other.exit_code);
}

void Tally::Finish(std::chrono::nanoseconds wall_time) {
  wall = wall_time;
  std::ranges::sort(latencies);
  std::ranges::sort(refusal_latencies);
}

double Tally::QuantileUs(const std::vector<std::chrono::nanoseconds>& sorted, double quantile) {
  if (sorted.empty()) return std::numeric_limits<double>::quiet_NaN();
  const auto count = static_cast<double>(sorted.size());
  const double rank = std::clamp(std::ceil(quantile * count), 1.0, count);
  return SecondsOf(sorted[static_cast<size_t>(rank) - 1]) * 1e6;
}

std::string TallyText(const Tally& tally, bool verified) {
  std::string text = absl::StrCat("requests  ", tally.requests, "\n");
  absl::StrAppend(&text, "replies   ", tally.ok, " with ", tally.tokens, " tokens\n");
  absl::StrAppend(&text, "wrong     ", verified ? absl::StrCat(tally.wrong) : "not checked", "\n");
  absl::StrAppend(&text, "refused   ", CountsText(tally.refused), "\n");
  absl::StrAppend(&text, "errors    ", CountsText(tally.errors), "\n");
  for (const auto& [reason, message] : tally.messages) absl::StrAppend(&text, "  ", reason, ": ", message, "\n");
  absl::StrAppendFormat(&text, "time      %.3f s, %.0f calls/s, %.0f tokens/s\n", SecondsOf(tally.wall),
                        PerSecond(tally.requests, tally), PerSecond(tally.tokens, tally));
  absl::StrAppend(&text, "latency  ");
  for (const auto& [name, json_name, quantile] : kQuantiles) {
    absl::StrAppendFormat(&text, " %s %.0f", name, tally.LatencyUs(quantile));
  }
  return text + " us\n";
}

void AddTally(const Tally& tally, bool verified, JsonObject& json) {
  JsonObject latency;
  JsonObject refusals;
  for (const auto& [name, json_name, quantile] : kQuantiles) {
    latency.Add(json_name, tally.LatencyUs(quantile));
    refusals.Add(json_name, tally.RefusalLatencyUs(quantile));
  }
  json.Add("requests", tally.requests).Add("ok", tally.ok).Add("tokens", tally.tokens);
  json.Add("verified", verified).Add("wrong", tally.wrong).AddJson("differences", JsonArray(tally.differences));
  json.Add("refused", CountsJson(tally.refused)).Add("errors", CountsJson(tally.errors));
  JsonObject messages;
  for (const auto& [reason, message] : tally.messages) messages.Add(reason, message);
  json.Add("messages", messages);
  json.Add("wall_s", SecondsOf(tally.wall)).Add("calls_per_s", PerSecond(tally.requests, tally));
  json.Add("tokens_per_s", PerSecond(tally.tokens, tally)).Add("latency_us", latency);
  if (!tally.refusal_latencies.empty()) json.Add("refusal_latency_us", refusals);
}

}  // namespace nsa::metadata::client
