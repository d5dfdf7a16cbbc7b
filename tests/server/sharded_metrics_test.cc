#include "server/sharded_metrics.h"

#include <gtest/gtest.h>

#include <limits>
#include <thread>
#include <vector>

namespace nsa::metadata::server {
namespace {

const prometheus::ClientMetric& MetricOf(const std::vector<prometheus::MetricFamily>& families, size_t family) {
  return families.at(family).metric.at(0);
}

TEST(ShardedMetricsTest, AddsUpWhatManyThreadsCount) {
  ShardedMetrics metrics;
  const ShardedMetrics::Counter counter = metrics.AddCounter("calls_total", "Calls.", {});
  metrics.Seal();
  constexpr int kThreads = 100;  // more than have memory of their own
  constexpr int kCalls = 1'000;
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&] {
      for (int call = 0; call < kCalls; ++call) metrics.Increment(counter);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(MetricOf(metrics.Collect(), 0).counter.value, kThreads * kCalls);
}

TEST(ShardedMetricsTest, TheBucketIsTheNumberOfBoundsThatAValuePasses) {
  for (const uint64_t first_bound : {1ull, 3ull, 500ull, 12'500ull, 65'536ull}) {
    for (const uint64_t multiple : {0ull, 1ull, 2ull, 3ull, 4ull, 7ull, 8ull, 9ull, 1'000'000ull, 1ull << 40}) {
      for (const int64_t beside : {-1, 0, 1}) {
        const uint64_t value = first_bound * multiple + static_cast<uint64_t>(beside);
        if (multiple == 0 && beside < 0) continue;
        size_t passed = 0;
        while (static_cast<__uint128_t>(first_bound) << passed < value) ++passed;
        EXPECT_EQ(ShardedMetrics::BucketOf(value, first_bound), passed) << value << " with bounds from " << first_bound;
      }
    }
  }
}

TEST(ShardedMetricsTest, ABoundBelongsToItsBucket) {
  ShardedMetrics metrics;
  const ShardedMetrics::Histogram histogram = metrics.AddHistogram("seconds", "Time.", {}, 500, 3, 1e-9);
  metrics.Seal();
  for (uint64_t value : {0, 500, 501, 1'000, 2'000, 2'001, 1'000'000}) metrics.Observe(histogram, value);
  const std::vector<prometheus::MetricFamily> families = metrics.Collect();
  const prometheus::ClientMetric::Histogram& read = MetricOf(families, 0).histogram;
  ASSERT_EQ(read.bucket.size(), 4u);
  EXPECT_DOUBLE_EQ(read.bucket[0].upper_bound, 500e-9);
  EXPECT_EQ(read.bucket[0].cumulative_count, 2u) << "0 and the bound itself";
  EXPECT_EQ(read.bucket[1].cumulative_count, 4u);
  EXPECT_EQ(read.bucket[2].cumulative_count, 5u);
  EXPECT_EQ(read.bucket[3].upper_bound, std::numeric_limits<double>::infinity());
  EXPECT_EQ(read.bucket[3].cumulative_count, 7u);
  EXPECT_EQ(read.sample_count, 7u);
  EXPECT_DOUBLE_EQ(read.sample_sum, 1'006'002e-9);
}

TEST(ShardedMetricsTest, SeriesOfOneNameAreOneFamily) {
  ShardedMetrics metrics;
  metrics.AddCounter("refused_total", "Refused.", {{"reason", "a"}});
  metrics.AddCounter("other_total", "Other.", {});
  metrics.AddCounter("refused_total", "Refused.", {{"reason", "b"}});
  metrics.Seal();
  const std::vector<prometheus::MetricFamily> families = metrics.Collect();
  ASSERT_EQ(families.size(), 2u);
  EXPECT_EQ(families[0].metric.size(), 2u);
}

}  // namespace
}  // namespace nsa::metadata::server
