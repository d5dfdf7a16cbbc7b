// Puts a server under a known load, and measures.
#pragma once

#include <grpcpp/security/credentials.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/bench_request.h"
#include "client/tally.h"

namespace nsa::metadata::client {

struct LoadOptions {
  std::string target;
  // nullptr: plain text.
  std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr;
  // The name that the server's certificate has to have; empty: the target's.
  std::string server_name = {};
  // Connections, which requests take in turn. 1 or more.
  int channels = 1;
  // ExpandStream calls that carry the requests, spread over the connections; 0: a call for each request.
  int streams = 0;
  // Requests under way at once, over all connections: as many as there are, or, with a rate, at most. 1 or more.
  int64_t in_flight = 1;
  // Requests a second, whatever the server does: one that comes due while in_flight are under way waits, and its
  // latency counts from when it was due. 0: a new request for each that ends.
  double rate = 0;
  // Threads that send and check. 0: one for two cores, and no more than there are connections.
  int threads = 0;
  // Measured for `duration`, after `warm_up`.
  absl::Duration warm_up = absl::Seconds(1);
  absl::Duration duration = absl::Seconds(5);
  // A call's deadline.
  absl::Duration timeout = absl::Seconds(30);
  // Attempts a unary call, as the library makes them (client.h), with the target's addresses in turn; 1: every refusal
  // is seen. 1 to 5.
  int max_attempts = 1;
};

struct LoadResult {
  // Of the requests that ended in the measured time or, with a rate, came due in it. Refused, failed and wrong ones
  // count whenever they were.
  Tally tally;
  // What the replies said of their time, if they were asked to.
  std::vector<v1::Timing> timings;
  // Requests that waited because in_flight were under way.
  int64_t waited = 0;
  // By how many fewer than in_flight there were at the end: two requests in a row of theirs reached no server, or their
  // stream had ended.
  int64_t given_up = 0;
};

// Sends `request` as `options` say, and compares every reply with its own. Blocks for warm_up and duration, and until
// every answer is there; it ends early, and its wall time with it, when no request reaches a server: a call that twice
// in a row reached none is made no more, nor is an item of a stream that has ended (`given_up`). `progress` is called
// now and then with the requests that have ended. INVALID_ARGUMENT names the option that is out of range.
absl::StatusOr<LoadResult> RunLoad(const BenchRequest& request, const LoadOptions& options,
                                   const std::function<void(int64_t ended)>& progress);

}  // namespace nsa::metadata::client
