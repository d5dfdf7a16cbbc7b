// The one clock that deadlines and stages are measured with: steady, nanoseconds.
#pragma once

#include <chrono>
#include <cstdint>

namespace nsa::metadata::server {

using Clock = std::chrono::steady_clock;
using TimePoint = Clock::time_point;

// `to - from` in nanoseconds, at least 0.
inline uint64_t Nanoseconds(TimePoint from, TimePoint to) {
  return to > from ? static_cast<uint64_t>(std::chrono::nanoseconds(to - from).count()) : 0;
}

}  // namespace nsa::metadata::server
