#include "server/gauges.h"

#include <dirent.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <utility>

namespace nsa::metadata::server {
namespace {

prometheus::MetricFamily Family(const std::string& name, const std::string& help, prometheus::MetricType type) {
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = type;
  return family;
}

prometheus::MetricFamily One(const std::string& name, const std::string& help, prometheus::MetricType type,
                             double value) {
  prometheus::MetricFamily family = Family(name, help, type);
  prometheus::ClientMetric metric;
  if (type == prometheus::MetricType::Counter) {
    metric.counter.value = value;
  } else {
    metric.gauge.value = value;
  }
  family.metric.push_back(std::move(metric));
  return family;
}

// The fields of /proc/self/stat from the third on, by proc(5)'s numbers.
class ProcStat {
 public:
  ProcStat() {
    std::ifstream file("/proc/self/stat");
    std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    // The second field, the command's name, may hold spaces and parentheses.
    const size_t name_end = text.rfind(')');
    std::istringstream rest(name_end == std::string::npos ? std::string() : text.substr(name_end + 1));
    for (std::string field; rest >> field;) fields_.push_back(field);
  }
  double Field(size_t number) const {
    const size_t index = number - 3;
    return index < fields_.size() ? std::stod(fields_[index]) : 0;
  }

 private:
  std::vector<std::string> fields_;
};

// Seconds since the epoch at which the machine came up.
double BootTime() {
  std::ifstream file("/proc/stat");
  std::string word;
  double seconds = 0;
  while (file >> word) {
    if (word == "btime" && file >> seconds) break;
  }
  return seconds;
}

double OpenDescriptors() {
  DIR* folder = opendir("/proc/self/fd");
  if (folder == nullptr) return 0;
  double count = -3;  // ".", ".." and the folder's own
  while (readdir(folder) != nullptr) ++count;
  closedir(folder);
  return count;
}

}  // namespace

void Gauges::Add(const std::string& name, const std::string& help, const Labels& labels, std::function<double()> read) {
  gauges_.push_back({name, help, labels, std::move(read)});
}

std::vector<prometheus::MetricFamily> Gauges::Collect() const {
  std::vector<prometheus::MetricFamily> families;
  for (const Gauge& gauge : gauges_) {
    if (families.empty() || families.back().name != gauge.name) {
      families.push_back(Family(gauge.name, gauge.help, prometheus::MetricType::Gauge));
    }
    prometheus::ClientMetric metric;
    for (const auto& [name, value] : gauge.labels) metric.label.push_back({name, value});
    metric.gauge.value = gauge.read();
    families.back().metric.push_back(std::move(metric));
  }
  return families;
}

ProcessMetrics::ProcessMetrics()
    : start_time_s_(BootTime() + ProcStat().Field(22) / static_cast<double>(sysconf(_SC_CLK_TCK))) {}

std::vector<prometheus::MetricFamily> ProcessMetrics::Collect() const {
  using prometheus::MetricType;
  const ProcStat stat;
  const double ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
  const double page = static_cast<double>(sysconf(_SC_PAGESIZE));
  rlimit descriptors = {};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  return {
      One("process_cpu_seconds_total", "User and system CPU time spent.", MetricType::Counter,
          (stat.Field(14) + stat.Field(15)) / ticks),
      One("process_resident_memory_bytes", "Resident memory.", MetricType::Gauge, stat.Field(24) * page),
      One("process_virtual_memory_bytes", "Virtual memory.", MetricType::Gauge, stat.Field(23)),
      One("process_threads", "Threads.", MetricType::Gauge, stat.Field(20)),
      One("process_open_fds", "Open descriptors.", MetricType::Gauge, OpenDescriptors()),
      One("process_max_fds", "Descriptors the process may open.", MetricType::Gauge,
          static_cast<double>(descriptors.rlim_cur)),
      One("process_start_time_seconds", "When the process started, seconds since the epoch.", MetricType::Gauge,
          start_time_s_),
  };
}

}  // namespace nsa::metadata::server
