#include "client/bench_report.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/json.h"

namespace nsa::metadata::client {
namespace {

constexpr int kBarColumns = 50;

constexpr struct {
  const char* name;
  uint64_t (v1::Timing::*get)() const;
} kStages[] = {{"parse", &v1::Timing::parse_ns}, {"admit", &v1::Timing::admit_ns},   {"queue", &v1::Timing::queue_ns},
               {"pack", &v1::Timing::pack_ns},   {"device", &v1::Timing::device_ns}, {"frame", &v1::Timing::frame_ns}};

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

template <typename Get>
double MedianOf(const std::vector<v1::Timing>& timings, Get get) {
  std::vector<double> values;
  for (const v1::Timing& timing : timings) values.push_back(static_cast<double>(get(timing)));
  return Median(std::move(values));
}

// A row for each half of an octave, from the fastest call's to the slowest one's.
std::string Histogram(const std::vector<std::chrono::nanoseconds>& latencies) {
  const auto row_of = [](std::chrono::nanoseconds latency) {
    return static_cast<int>(std::floor(2 * std::log2(std::max<double>(static_cast<double>(latency.count()), 1) / 1e3)));
  };
  std::string text;
  auto begin = latencies.begin();
  while (begin != latencies.end()) {
    const int row = row_of(*begin);
    const auto end = std::find_if(begin, latencies.end(), [&](auto latency) { return row_of(latency) != row; });
    const double share = static_cast<double>(end - begin) / static_cast<double>(latencies.size());
    absl::StrAppendFormat(&text, "%9.0f us %5.1f %% %s\n", std::exp2(row / 2.0), 100 * share,
                          std::string(static_cast<size_t>(std::ceil(share * kBarColumns)), '#'));
    begin = end;
  }
  return text;
}

std::string LoadText(const LoadOptions& options) {
  std::string text = options.rate > 0 ? absl::StrFormat("open loop, %.0f requests/s, at most %d in flight",
                                                        options.rate, options.in_flight)
                                      : absl::StrCat("closed loop, ", options.in_flight, " in flight");
  absl::StrAppend(&text, " over ", options.channels, options.channels == 1 ? " connection" : " connections");
  return options.streams > 0 ? absl::StrCat(text, " and ", options.streams, " streams") : text;
}

}  // namespace

std::string BenchText(const BenchRequest& request, const LoadOptions& options, const LoadResult& result) {
  std::string text;
  for (const std::string& difference : result.tally.differences) absl::StrAppend(&text, "wrong: ", difference, "\n");
  absl::StrAppend(&text, "request   ", request.num_sequences(), " sequences, ", request.reply().total_tokens(),
                  " tokens; the reply has ", request.reply().ByteSizeLong(), " bytes\n");
  absl::StrAppend(&text, "load      ", LoadText(options), "\n", TallyText(result.tally, /*verified=*/true));
  if (options.rate > 0) absl::StrAppend(&text, "waited    ", result.waited, " came due with all in flight\n");
  if (result.given_up > 0) {
    absl::StrAppend(&text, "gave up   ", result.given_up, " of ", options.in_flight,
                    " in flight: no server was reached, or their stream had ended\n");
  }
  if (!result.timings.empty()) {
    text += "stages   ";
    for (const auto& [name, get] : kStages) {
      absl::StrAppendFormat(&text, " %s %.2f", name, MedianOf(result.timings, std::mem_fn(get)) * 1e-3);
    }
    absl::StrAppendFormat(&text, " us in the server, %.0f requests a batch (medians)\n",
                          MedianOf(result.timings, std::mem_fn(&v1::Timing::batch_requests)));
  }
  return text + Histogram(result.tally.latencies);
}

std::string BenchJson(const BenchRequest& request, const LoadOptions& options, const LoadResult& result) {
  JsonObject json;
  json.Add("num_sequences", request.num_sequences()).Add("total_tokens", request.reply().total_tokens());
  json.Add("reply_bytes", static_cast<int64_t>(request.reply().ByteSizeLong()));
  json.Add("channels", int64_t{options.channels}).Add("streams", int64_t{options.streams});
  json.Add("in_flight", options.in_flight).Add("rate", options.rate);
  AddTally(result.tally, /*verified=*/true, json);
  json.Add("waited", result.waited).Add("given_up", result.given_up);
  if (!result.timings.empty()) {
    JsonObject stages;
    for (const auto& [name, get] : kStages) stages.Add(name, MedianOf(result.timings, std::mem_fn(get)) * 1e-3);
    json.Add("stages_us", stages);
    json.Add("batch_requests", MedianOf(result.timings, std::mem_fn(&v1::Timing::batch_requests)));
  }
  return json.str() + "\n";
}

}  // namespace nsa::metadata::client
