// grpc::ServerBuilder options of ours.
#pragma once

#include <memory>

#include "grpcpp/impl/server_builder_option.h"

namespace nsa::metadata::server {

// The reflection library adds itself to every server of a process that links it; this takes it out again.
std::unique_ptr<grpc::ServerBuilderOption> WithoutReflection();

}  // namespace nsa::metadata::server
