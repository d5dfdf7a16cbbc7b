// Whom a request is charged to.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace nsa::metadata::server {

// What one caller has in the queue and in the output pool is counted in an account of its own, of a fixed number of
// them: callers share one when their names' hashes meet. kNoAccount: no limit of a caller's.
using Account = uint16_t;
inline constexpr size_t kNumAccounts = 16'384;
inline constexpr Account kNoAccount = 0;

// What one account may have of `whole`, at least 1.
constexpr int64_t ShareOf(double caller_share, int64_t whole) {
  return std::max(static_cast<int64_t>(caller_share * static_cast<double>(whole)), int64_t{1});
}

}  // namespace nsa::metadata::server
