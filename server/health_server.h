// grpc.health.v1 on a port of its own, so that no load on the service fails a probe.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/server.h"
#include "server/address.h"

namespace nsa::metadata::server {

// Both names are answered for: "" (the whole server) and the service's. Not thread-safe.
class HealthServer {
 public:
  // UNAVAILABLE naming the address when it can't listen there. Says NOT_SERVING at first.
  static absl::StatusOr<std::unique_ptr<HealthServer>> Start(const Address& address);
  // Ends Watch streams too.
  ~HealthServer();

  void SetServing(bool serving);
  // With the port that was taken.
  const Address& address() const { return address_; }

 private:
  HealthServer() = default;

  Address address_;
  // Answers UNIMPLEMENTED: gRPC starts no server that has but its own health service.
  grpc::CallbackGenericService other_;
  std::unique_ptr<grpc::Server> server_;
};

// Sets what `server`'s own health service, where it has one, says for both names.
void SetServingStatus(grpc::Server& server, bool serving);

}  // namespace nsa::metadata::server
