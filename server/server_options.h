// grpc::ServerBuilder options of ours.
#pragma once

#include <memory>

#include "grpcpp/impl/server_builder_option.h"
#include "grpcpp/server_builder.h"

namespace nsa::metadata::server {

// The reflection library adds itself to every server of a process that links it; this takes it out again.
std::unique_ptr<grpc::ServerBuilderOption> WithoutReflection();

// Bounds the threads that gRPC answers reflection on: it has one for each stream that is open. What finds none is
// RESOURCE_EXHAUSTED.
void BoundThreads(grpc::ServerBuilder& builder);

}  // namespace nsa::metadata::server
