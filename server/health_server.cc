#include "server/health_server.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"
#include "server/server_options.h"

namespace nsa::metadata::server {

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::Start(const Address& address) {
  std::unique_ptr<HealthServer> health(new HealthServer);
  health->address_ = address;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address.ToString(), grpc::InsecureServerCredentials(), &port);
  builder.RegisterCallbackGenericService(&health->other_);
  builder.SetOption(WithoutReflection());
  // Without it a second server on the port would share it unnoticed.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  health->server_ = builder.BuildAndStart();
  if (health->server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address.ToString(), " for health"));
  }
  if (!address.is_unix) health->address_.port = static_cast<uint16_t>(port);
  health->SetServing(false);
  return health;
}

HealthServer::~HealthServer() {
  if (server_ != nullptr) server_->Shutdown(std::chrono::system_clock::now());
}

void HealthServer::SetServing(bool serving) { SetServingStatus(*server_, serving); }

void SetServingStatus(grpc::Server& server, bool serving) {
  if (grpc::HealthCheckServiceInterface* health = server.GetHealthCheckService()) {
    health->SetServingStatus(serving);
    health->SetServingStatus(v1::MetadataService::service_full_name(), serving);
  }
}

}  // namespace nsa::metadata::server
