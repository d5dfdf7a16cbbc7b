// How connections that were accepted by us become gRPC's, for the service and for the transport's floor in tests/bench.
#pragma once

#include <cstdint>
#include <memory>

#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "server/options.h"

namespace nsa::metadata::server {

// Bytes that a caller may send ahead on a stream that is not read. gRPC's own way lets them grow, by the round trip's
// time, without end. A message that is being read may be larger.
inline constexpr uint64_t kStreamWindowBytes = 256 << 10;

// Sets what each connection is given, as channel arguments. `options` are valid.
void SetConnectionArguments(grpc::ServerBuilder& builder, const ConnectionOptions& options);

// Adds what takes connections by their descriptors to a server.
std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> AddConnections(
    grpc::ServerBuilder& builder,
    const std::shared_ptr<grpc::ServerCredentials>& credentials = grpc::InsecureServerCredentials());

// Gives a connection to gRPC, which then owns `fd`. Any thread.
void HandOver(int fd, int listener_fd, grpc::experimental::ExternalConnectionAcceptor& connections);

}  // namespace nsa::metadata::server
