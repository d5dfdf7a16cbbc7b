#include "server/sharded_metrics.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace nsa::metadata::server {

size_t ShardedMetrics::FamilyOf(const std::string& name, const std::string& help, prometheus::MetricType type) {
  const auto found = std::ranges::find(families_, name, &prometheus::MetricFamily::name);
  if (found == families_.end()) {
    prometheus::MetricFamily& family = families_.emplace_back();
    family.name = name;
    family.help = help;
    family.type = type;
    return families_.size() - 1;
  }
  return static_cast<size_t>(found - families_.begin());
}

ShardedMetrics::Counter ShardedMetrics::AddCounter(const std::string& name, const std::string& help,
                                                   const Labels& labels) {
  const Counter counter = {num_cells_++};
  series_.push_back({.family = FamilyOf(name, help, prometheus::MetricType::Counter),
                     .labels = labels,
                     .histogram = {.sum_cell = counter.cell, .first_bound = 1, .num_bounds = 0},
                     .unit = 1});
  return counter;
}

ShardedMetrics::Histogram ShardedMetrics::AddHistogram(const std::string& name, const std::string& help,
                                                       const Labels& labels, uint64_t first_bound, size_t num_bounds,
                                                       double unit) {
  const Histogram histogram = {.sum_cell = num_cells_, .first_bound = first_bound, .num_bounds = num_bounds};
  num_cells_ += 1 + num_bounds + 1;  // the sum, the buckets, and the one beyond the last bound
  series_.push_back({.family = FamilyOf(name, help, prometheus::MetricType::Histogram),
                     .labels = labels,
                     .histogram = histogram,
                     .unit = unit});
  return histogram;
}

void ShardedMetrics::Seal() {
  for (auto& shard : shards_) shard = std::make_unique<std::atomic<uint64_t>[]>(num_cells_);
}

uint64_t ShardedMetrics::Sum(size_t cell) const {
  uint64_t sum = 0;
  for (const auto& shard : shards_) sum += shard[cell].load(std::memory_order_relaxed);
  return sum;
}

std::vector<prometheus::MetricFamily> ShardedMetrics::Collect() const {
  std::vector<prometheus::MetricFamily> families = families_;
  for (const Series& series : series_) {
    prometheus::MetricFamily& family = families[series.family];
    prometheus::ClientMetric& metric = family.metric.emplace_back();
    for (const auto& [name, value] : series.labels) metric.label.push_back({name, value});
    const Histogram& h = series.histogram;
    if (family.type == prometheus::MetricType::Counter) {
      metric.counter.value = static_cast<double>(Sum(h.sum_cell));
      continue;
    }
    metric.histogram.sample_sum = static_cast<double>(Sum(h.sum_cell)) * series.unit;
    uint64_t count = 0;
    for (size_t n = 0; n <= h.num_bounds; ++n) {
      count += Sum(h.sum_cell + 1 + n);
      const double bound = n == h.num_bounds ? std::numeric_limits<double>::infinity()
                                             : static_cast<double>(h.first_bound << n) * series.unit;
      metric.histogram.bucket.push_back({count, bound});
    }
    // What the buckets say, so that they agree while others observe.
    metric.histogram.sample_count = count;
  }
  return families;
}

}  // namespace nsa::metadata::server
