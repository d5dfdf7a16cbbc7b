// What is checked of a call before its message.
#pragma once

#include <optional>

#include "grpcpp/server_context.h"
#include "server/metrics.h"
#include "server/refusal.h"
#include "server/service.h"

namespace nsa::metadata::server {

// Refuses what the authorization policy does not allow, and metadata that take more than max_metadata_bytes, as HTTP/2
// counts a header list: gRPC's own limit lets some of them pass.
std::optional<Refusal> CheckCall(const grpc::ServerContextBase& call, Method method, const CallContext& context);

}  // namespace nsa::metadata::server
