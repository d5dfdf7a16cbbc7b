// Counters and histograms that many threads add to at once, each thread in memory of its own: prometheus-cpp's share
// their memory, which made a dozen observations a call a tenth of the call.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <array>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "server/thread_number.h"

namespace nsa::metadata::server {

// Add every series, then Seal, then count and observe from any thread.
class ShardedMetrics final : public prometheus::Collectable {
 public:
  using Labels = std::map<std::string, std::string>;
  struct Counter {
    size_t cell = 0;
  };
  // Of whole numbers. The bounds are first_bound, twice that, and so on.
  struct Histogram {
    size_t sum_cell = 0;  // its buckets' cells follow
    uint64_t first_bound = 1;
    size_t num_bounds = 0;
  };

  Counter AddCounter(const std::string& name, const std::string& help, const Labels& labels);
  // `unit` is what an observed 1 is in the metric's own unit.
  Histogram AddHistogram(const std::string& name, const std::string& help, const Labels& labels, uint64_t first_bound,
                         size_t num_bounds, double unit);
  void Seal();

  void Increment(const Counter& counter) { Add(counter.cell, 1); }
  void Add(const Counter& counter, uint64_t value) { Add(counter.cell, value); }
  // What was added so far.
  uint64_t ValueOf(const Counter& counter) const { return Sum(counter.cell); }
  void Observe(const Histogram& histogram, uint64_t value) {
    Add(histogram.sum_cell, value);
    Add(histogram.sum_cell + 1 + std::min(BucketOf(value, histogram.first_bound), histogram.num_bounds), 1);
  }

  std::vector<prometheus::MetricFamily> Collect() const override;

  // 0 up to the first bound, 1 up to twice that, and so on: the width of (value - 1) / first_bound in bits, by which
  // nothing is divided a dozen times a call.
  static constexpr size_t BucketOf(uint64_t value, uint64_t first_bound) {
    if (value <= first_bound) return 0;
    const uint64_t rest = value - 1;
    const int shift = std::bit_width(rest) - std::bit_width(first_bound);
    return static_cast<size_t>(shift) + ((rest >> shift) >= first_bound ? 1 : 0);
  }

 private:
  // One for each of as many threads, and the last for all others.
  static constexpr size_t kShards = 65;
  struct Series {
    size_t family;
    Labels labels;
    Histogram histogram;  // of a counter only sum_cell is set
    double unit;
  };

  void Add(size_t cell, uint64_t value) {
    const size_t thread = ThreadNumber();
    if (thread < kShards - 1) {  // nobody else writes there
      std::atomic<uint64_t>& own = shards_[thread][cell];
      own.store(own.load(std::memory_order_relaxed) + value, std::memory_order_relaxed);
    } else {
      shards_[kShards - 1][cell].fetch_add(value, std::memory_order_relaxed);
    }
  }
  uint64_t Sum(size_t cell) const;
  size_t FamilyOf(const std::string& name, const std::string& help, prometheus::MetricType type);

  std::vector<prometheus::MetricFamily> families_;  // without their metrics
  std::vector<Series> series_;
  size_t num_cells_ = 0;
  std::array<std::unique_ptr<std::atomic<uint64_t>[]>, kShards> shards_;
};

}  // namespace nsa::metadata::server
