// What is checked of a call before its message.
#pragma once

#include <optional>

#include "grpcpp/server_context.h"
#include "server/refusal.h"

namespace nsa::metadata::server {

// Refuses metadata that take more than `max_bytes`, as HTTP/2 counts a header list. gRPC's own limit lets some of them
// pass.
std::optional<Refusal> CheckMetadata(const grpc::ServerContextBase& call, int64_t max_bytes);

}  // namespace nsa::metadata::server
