#include "server/history.h"

#include <google/protobuf/util/time_util.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/clock.h"
#include "prometheus/metric_family.h"

namespace nsa::metadata::server {
namespace {

using status::v1::Chart;
using status::v1::Status;

constexpr double kNothing = std::numeric_limits<double>::quiet_NaN();
constexpr double kMilliseconds = 1e3;

}  // namespace

double QuantileOf(double quantile, const std::vector<double>& bounds, const std::vector<double>& counts) {
  const double total = counts.empty() ? 0 : counts.back();
  if (total <= 0) return kNothing;
  const double rank = quantile * total;
  const auto bucket = static_cast<size_t>(std::ranges::lower_bound(counts, rank) - counts.begin());
  const double low = bucket == 0 ? 0 : bounds[bucket - 1];
  if (std::isinf(bounds[bucket])) return low;
  const double before = bucket == 0 ? 0 : counts[bucket - 1];
  return low + (bounds[bucket] - low) * (rank - before) / (counts[bucket] - before);
}

History::History(Options options, const prometheus::Collectable& metrics, std::vector<Gauge> gauges)
    : options_(options), metrics_(metrics), gauges_(std::move(gauges)) {
  Look(absl::Now());
  thread_ = std::thread([this] { Run(); });
}

History::~History() {
  {
    MutexLock lock(&mutex_);
    stop_ = true;
    stop_changed_.SignalAll();
  }
  thread_.join();
}

void History::Run() {
  TimePoint next = Clock::now();
  for (;;) {
    {
      MutexLock lock(&mutex_);
      next = std::max(next + options_.period, Clock::now());  // no looks to catch up with
      while (!stop_ && Clock::now() < next) stop_changed_.WaitUntil(mutex_, next);
      if (stop_) return;
    }
    Look(absl::Now());
  }
}

void History::Look(absl::Time now) {
  Sample sample = {.time = now, .looked = Clock::now(), .values = {}, .gauges = {}};
  for (const auto& [name, read] : gauges_) sample.gauges.push_back(read());
  std::vector<Series> series;
  for (const prometheus::MetricFamily& family : metrics_.Collect()) {
    for (const prometheus::ClientMetric& metric : family.metric) {
      Series& one = series.emplace_back();
      one.name = family.name;
      for (const auto& label : metric.label) one.labels[label.name] = label.value;
      one.at = sample.values.size();
      if (family.type != prometheus::MetricType::Histogram) {
        sample.values.push_back(metric.counter.value);
        continue;
      }
      sample.values.push_back(metric.histogram.sample_sum);
      for (const auto& bucket : metric.histogram.bucket) {
        one.bounds.push_back(bucket.upper_bound);
        sample.values.push_back(static_cast<double>(bucket.cumulative_count));
      }
    }
  }
  MutexLock lock(&mutex_);
  if (series_.empty()) series_ = std::move(series);
  samples_.push_back(std::move(sample));
  if (samples_.size() > options_.kept + 1) samples_.pop_front();
}

double History::QuantileBetween(double quantile, const std::vector<const Series*>& histograms, const Sample& from,
                                const Sample& to) {
  std::vector<double> counts(histograms.front()->bounds.size());
  for (const Series* histogram : histograms) {
    for (size_t i = 0; i < counts.size(); ++i) {
      const size_t at = histogram->at + 1 + i;  // behind the sum
      counts[i] += to.values[at] - from.values[at];
    }
  }
  return QuantileOf(quantile, histograms.front()->bounds, counts);
}

std::vector<const History::Series*> History::Named(std::string_view name) const {
  std::vector<const Series*> named;
  for (const Series& series : series_) {
    if (series.name == name) named.push_back(&series);
  }
  return named;
}

Chart& History::AddChart(Status& status, const char* title, const char* unit) const {
  Chart& chart = *status.add_charts();
  chart.set_title(title);
  chart.set_unit(unit);
  return chart;
}

void History::AddLine(Chart& chart, const std::string& name, const Value& value) const {
  status::v1::Line& line = *chart.add_lines();
  line.set_name(name);
  for (size_t i = 1; i < samples_.size(); ++i) line.add_values(value(samples_[i - 1], samples_[i]));
}

void History::AddRates(Chart& chart, std::string_view name, const std::string& label) const {
  std::map<std::string, std::vector<size_t>> places;  // by the label's value
  for (const Series* series : Named(name)) {
    if (samples_.back().values[series->at] > 0) places[series->labels.at(label)].push_back(series->at);
  }
  for (const auto& [value, at] : places) {
    AddLine(chart, value, [&at = at](const Sample& from, const Sample& to) {
      double more = 0;
      for (const size_t place : at) more += to.values[place] - from.values[place];
      return more / std::chrono::duration<double>(to.looked - from.looked).count();
    });
  }
}

void History::AddQuantiles(Status& status, const char* title, const std::vector<const Series*>& histograms) const {
  if (histograms.empty()) return;
  Chart& chart = AddChart(status, title, "ms");
  constexpr std::pair<const char*, double> kQuantiles[] = {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}};
  for (const auto& [name, quantile] : kQuantiles) {
    AddLine(chart, name, [&histograms, quantile = quantile](const Sample& from, const Sample& to) {
      return kMilliseconds * QuantileBetween(quantile, histograms, from, to);
    });
  }
}

void History::AddStages(Status& status, const char* title, double quantile) const {
  Chart& chart = AddChart(status, title, "ms");
  for (const Series* stage : Named("nsa_metadata_stage_seconds")) {
    AddLine(chart, stage->labels.at("stage"), [stage, quantile](const Sample& from, const Sample& to) {
      return kMilliseconds * QuantileBetween(quantile, {stage}, from, to);
    });
  }
}

void History::AddMean(Chart& chart, const std::string& line, std::string_view name) const {
  for (const Series* histogram : Named(name)) {
    AddLine(chart, line, [histogram](const Sample& from, const Sample& to) {
      const size_t all = histogram->at + histogram->bounds.size();  // the last bucket
      const double count = to.values[all] - from.values[all];
      return count > 0 ? (to.values[histogram->at] - from.values[histogram->at]) / count : kNothing;
    });
  }
}

void History::AddTotals(Status& status) const {
  for (const Series& series : series_) {
    const double value = samples_.back().values[series.at];
    if (!series.bounds.empty() || value == 0) continue;
    status::v1::Total& total = *status.add_totals();
    total.set_name(series.name);
    const std::string labels = absl::StrJoin(series.labels, ",", [](std::string* out, const auto& label) {
      absl::StrAppend(out, label.first, "=\"", label.second, "\"");
    });
    if (!labels.empty()) total.set_labels(absl::StrCat("{", labels, "}"));
    total.set_value(value);
  }
}

void History::Describe(Status& status) const {
  MutexLock lock(&mutex_);
  for (size_t i = 1; i < samples_.size(); ++i) {
    *status.add_times() = google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(samples_[i].time));
  }
  AddRates(AddChart(status, "Calls", "/s"), "grpc_server_handled_total", "grpc_code");
  AddRates(AddChart(status, "Refusals", "/s"), "nsa_metadata_refused_total", "reason");
  // Those that compute.
  std::vector<const Series*> calls = Named("grpc_server_handling_seconds");
  std::erase_if(calls, [](const Series* series) {
    const std::string& method = series->labels.at("grpc_method");
    return method != "Expand" && method != "ModelInfer";
  });
  AddQuantiles(status, "Latency of calls", calls);
  AddQuantiles(status, "Latency of stream items", Named("nsa_metadata_item_seconds"));
  AddStages(status, "Stages, p50", 0.5);
  AddStages(status, "Stages, p99", 0.99);
  AddMean(AddChart(status, "Requests a batch", ""), "mean", "nsa_metadata_batch_requests");
  AddMean(AddChart(status, "Tokens a batch", ""), "mean", "nsa_metadata_batch_tokens");
  for (size_t i = 0; i < gauges_.size(); ++i) {
    AddLine(AddChart(status, gauges_[i].first.c_str(), ""), gauges_[i].first,
            [i](const Sample&, const Sample& to) { return to.gauges[i]; });
  }
  AddTotals(status);
}

}  // namespace nsa::metadata::server
