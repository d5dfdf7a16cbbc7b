// Whether a server takes requests, by gRPC's standard health protocol.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "client/client.h"

namespace nsa::metadata::client {

// The values are those of grpc.health.v1.HealthCheckResponse.
enum class ServingStatus { kUnknown = 0, kServing = 1, kNotServing = 2, kServiceUnknown = 3 };

// "SERVING" and so on; "UNKNOWN" for values this client doesn't know.
std::string ServingStatusName(ServingStatus status);

// Asks `target`, a gRPC name, for the state of `service`; empty: of the server as a whole. Opens a connection for it,
// as the credentials, server_name and timeout of `options` say. Blocks until the answer. NOT_FOUND: the server doesn't
// know the service. Thread-safe.
absl::StatusOr<ServingStatus> CheckHealth(const std::string& target, const std::string& service,
                                          const ClientOptions& options);

}  // namespace nsa::metadata::client
