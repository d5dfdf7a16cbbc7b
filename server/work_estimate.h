// How long a batch will take, from those before it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "server/clock.h"

namespace nsa::metadata::server {

// Keeps a moving mean and deviation for each power of two of tokens, and answers the mean and four deviations, as TCP
// does for its timer (RFC 6298). Not thread-safe.
class WorkEstimate {
 public:
  void Add(int64_t tokens, Clock::duration took);

  // 0 until something was measured. For a size that was not: the nearest smaller one's, grown with the tokens, which is
  // the most that work grows with them; else the nearest larger one's.
  Clock::duration For(int64_t tokens) const;

 private:
  struct Measured {
    bool any = false;
    double mean_ns = 0;
    double deviation_ns = 0;

    double Estimate() const { return mean_ns + 4 * deviation_ns; }
  };
  static size_t SizeOf(int64_t tokens);

  std::array<Measured, 32> sizes_ = {};
};

}  // namespace nsa::metadata::server
