// Values that are read when somebody asks for the metrics, instead of being kept up to date on every call.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

namespace nsa::metadata::server {

// Thread-safe once filled.
class Gauges final : public prometheus::Collectable {
 public:
  using Labels = std::map<std::string, std::string>;

  // `read` is called at each scrape, from any thread. Gauges of one name are added one after another.
  void Add(const std::string& name, const std::string& help, const Labels& labels, std::function<double()> read);

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  struct Gauge {
    std::string name;
    std::string help;
    Labels labels;
    std::function<double()> read;
  };
  std::vector<Gauge> gauges_;
};

// The standard process_* metrics, from /proc/self.
class ProcessMetrics final : public prometheus::Collectable {
 public:
  ProcessMetrics();
  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  // Read once: it follows from the machine's clock, and is not to change with that.
  const double start_time_s_;
};

}  // namespace nsa::metadata::server
