// The log on standard error, as text or as a JSON object a line.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "spdlog/common.h"

namespace nsa::metadata::server {

// For the process, before anything is logged. `format` is "text" or "json".
void SetUpLog(const std::string& format);

using LogFields = std::vector<std::pair<std::string_view, std::variant<std::string, double, int64_t>>>;

// A line with fields: after `message` as name=value, or members of the JSON object. Values may hold any bytes.
void Log(spdlog::level::level_enum level, std::string_view message, const LogFields& fields);

// Lets so many lines through a second. Thread-safe.
class LogLimit {
 public:
  explicit LogLimit(int64_t per_second) : per_second_(per_second) {}
  // Whether the next line may be logged, and then how many could not since the last that could.
  bool Allow(int64_t* suppressed);

 private:
  const int64_t per_second_;
  std::atomic<int64_t> second_{0};
  std::atomic<int64_t> lines_{0};
  std::atomic<int64_t> suppressed_{0};
};

}  // namespace nsa::metadata::server
