// Whether a server takes requests, by gRPC's standard health protocol.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace nsa::metadata::client {

// The values are those of grpc.health.v1.HealthCheckResponse.
enum class ServingStatus { kUnknown = 0, kServing = 1, kNotServing = 2, kServiceUnknown = 3 };

// "SERVING" and so on; "UNKNOWN" for values this client doesn't know.
std::string ServingStatusName(ServingStatus status);

// Asks `target`, a gRPC name, for the state of `service`; empty: of the server as a whole. Opens a plain-text
// connection for it. Blocks until the answer, `timeout` at most; 0: for any time. NOT_FOUND: the server doesn't know
// the service. Thread-safe.
absl::StatusOr<ServingStatus> CheckHealth(const std::string& target, const std::string& service,
                                          absl::Duration timeout);

}  // namespace nsa::metadata::client
