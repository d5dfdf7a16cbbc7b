// When what ended UNAVAILABLE is sent again.
#pragma once

#include "absl/time/time.h"

namespace nsa::metadata::client {

// Calls, and items of a stream, that end UNAVAILABLE are sent again: the server was not reached, or may take the same
// request later. So are items whose stream ends CANCELLED by nobody here, and nothing else. An expansion changes
// nothing, so that one sent twice does no harm. The server's own hint of when to come back (grpc-retry-pushback-ms)
// goes before the backoff. Nothing throttles retries. A connection that could not be made is tried again after 100 ms,
// then later and later, up to every 5 s: the third of four attempts finds a server that refused one connection.
struct Retry {
  // Attempts a call or an item, the first included. 1 to 5; 1: no retries.
  int max_attempts = 4;
  // The longest wait before the second attempt; it doubles with each further one, up to max_backoff. 1 ms or more.
  absl::Duration initial_backoff = absl::Milliseconds(50);
  absl::Duration max_backoff = absl::Seconds(1);
};

}  // namespace nsa::metadata::client
