#include "server/work_estimate.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace nsa::metadata::server {
namespace {

// RFC 6298's weights of a new measurement.
constexpr double kMeanWeight = 1.0 / 8;
constexpr double kDeviationWeight = 1.0 / 4;
// More than so many times the estimate is no measurement of the work, which the system took the processor from.
constexpr double kMostOfEstimate = 2;
constexpr double kLeastNanoseconds = 1e3;
// An hour: longer than any delay is of use.
constexpr double kMostNanoseconds = 3.6e12;

}  // namespace

size_t WorkEstimate::SizeOf(int64_t tokens) {
  const auto size = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(std::max<int64_t>(tokens, 0))));
  return std::min(size, std::tuple_size_v<decltype(sizes_)> - 1);
}

void WorkEstimate::Add(int64_t tokens, Clock::duration took) {
  Measured& size = sizes_[SizeOf(tokens)];
  auto ns = static_cast<double>(std::chrono::nanoseconds(took).count());
  if (!size.any) {
    size = {.any = true, .mean_ns = ns, .deviation_ns = ns / 2};
    return;
  }
  ns = std::min(ns, std::max(kMostOfEstimate * size.Estimate(), kLeastNanoseconds));
  size.deviation_ns += kDeviationWeight * (std::abs(ns - size.mean_ns) - size.deviation_ns);
  size.mean_ns += kMeanWeight * (ns - size.mean_ns);
}

Clock::duration WorkEstimate::For(int64_t tokens) const {
  const auto of = [](const Measured& size, double factor) {
    return std::chrono::nanoseconds(std::llround(std::min(factor * size.Estimate(), kMostNanoseconds)));
  };
  const size_t asked = SizeOf(tokens);
  for (size_t size = asked + 1; size-- > 0;) {
    if (sizes_[size].any) return of(sizes_[size], std::exp2(static_cast<double>(asked - size)));
  }
  for (size_t size = asked + 1; size < sizes_.size(); ++size) {
    if (sizes_[size].any) return of(sizes_[size], 1);
  }
  return Clock::duration::zero();
}

}  // namespace nsa::metadata::server
