// The last minutes of the metrics, for the status page.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "nsa/metadata/status/v1/status.pb.h"
#include "prometheus/collectable.h"
#include "server/clock.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

// Looks at the metrics every `period`, and remembers `kept` looks. Thread-safe.
class History {
 public:
  // A gauge, by the name of its line.
  using Gauge = std::pair<std::string, std::function<double()>>;

  struct Options {
    Clock::duration period = std::chrono::seconds(2);
    size_t kept = 300;
  };

  // `metrics`' series are always the same; they and what `gauges` read outlive this.
  History(Options options, const prometheus::Collectable& metrics, std::vector<Gauge> gauges);
  ~History();
  History(const History&) = delete;

  // Sets times, charts and totals.
  void Describe(status::v1::Status& status) const ABSL_LOCKS_EXCLUDED(mutex_);

  // A look at `now`. For tests; the thread does nothing else.
  void Look(absl::Time now) ABSL_LOCKS_EXCLUDED(mutex_);

 private:
  // A counter, whose value is at `at` of a look, or a histogram, whose sum is, then its cumulative buckets.
  struct Series {
    std::string name;
    std::map<std::string, std::string> labels;
    size_t at = 0;
    std::vector<double> bounds;  // of a histogram
  };
  struct Sample {
    absl::Time time;
    TimePoint looked;  // by a clock that is never set
    std::vector<double> values;
    std::vector<double> gauges;
  };
  // A value of what happened from one look to the next.
  using Value = std::function<double(const Sample& from, const Sample& to)>;

  void Run();
  // Of all of them together, which have the same bounds.
  static double QuantileBetween(double quantile, const std::vector<const Series*>& histograms, const Sample& from,
                                const Sample& to);
  std::vector<const Series*> Named(std::string_view name) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  status::v1::Chart& AddChart(status::v1::Status& status, const char* title, const char* unit) const;
  void AddLine(status::v1::Chart& chart, const std::string& name, const Value& value) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // A line for each value of `label` that ever counted, of the sums over other labels.
  void AddRates(status::v1::Chart& chart, std::string_view name, const std::string& label) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  // Of all of them together; no chart where there are none.
  void AddQuantiles(status::v1::Status& status, const char* title, const std::vector<const Series*>& histograms) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void AddStages(status::v1::Status& status, const char* title, double quantile) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void AddMean(status::v1::Chart& chart, const std::string& line, std::string_view name) const
      ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  void AddTotals(status::v1::Status& status) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);

  const Options options_;
  const prometheus::Collectable& metrics_;
  const std::vector<Gauge> gauges_;
  mutable Mutex mutex_;
  CondVar stop_changed_;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<Series> series_ ABSL_GUARDED_BY(mutex_);
  std::deque<Sample> samples_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

// The value that a share `quantile` of what a histogram counted stays within, as PromQL's histogram_quantile: `counts`
// are cumulative, one for each of `bounds`, the last of which is infinite. NaN if nothing was counted.
double QuantileOf(double quantile, const std::vector<double>& bounds, const std::vector<double>& counts);

}  // namespace nsa::metadata::server
