// What the server's counters have to come to once nothing is in flight.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "tests/support/running_server.h"

namespace nsa::metadata::testing {

// Where the requests of a server ended that has none in flight any more.
struct Books {
  double admitted;
  double launched;
  double expired;    // in the queue
  double cancelled;  // in the queue
};

inline Books BooksOf(RunningServer& server) {
  const std::string text = HttpGet(server.server().metrics_address(), "/metrics");
  return {.admitted = MetricValue(text, "nsa_metadata_admitted_total"),
          .launched = MetricValue(text, "nsa_metadata_batch_requests_sum"),
          .expired = MetricValue(text, "nsa_metadata_expired_total{stage=\"queue\"}"),
          .cancelled = MetricValue(text, "nsa_metadata_cancelled_total{stage=\"queue\"}")};
}

// Waits until the server has no call left, and expects that it has let go of everything and accounts for each request
// that came into its queue.
inline Books ExpectNothingIsLeft(RunningServer& server) {
  while (server.server().live_calls() > 0) std::this_thread::yield();
  // The batch of a call that is gone may still be on its way.
  while (server.server().output_blocks_in_use() > 0) std::this_thread::yield();
  const Books books = BooksOf(server);
  EXPECT_EQ(books.admitted, books.launched + books.expired + books.cancelled)
      << books.launched << " launched, " << books.expired << " expired, " << books.cancelled << " cancelled";
  return books;
}

}  // namespace nsa::metadata::testing
