// What every connection is given, as gRPC's channel arguments.
#pragma once

#include "grpcpp/server_builder.h"
#include "server/options.h"

namespace nsa::metadata::server {

// `options` are valid. Used by the service, and by the transport's floor in tests/bench.
void SetConnectionArguments(grpc::ServerBuilder& builder, const ConnectionOptions& options);

}  // namespace nsa::metadata::server
