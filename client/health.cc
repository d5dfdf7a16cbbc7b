#include "client/health.h"

#include <grpcpp/create_channel.h>

#include "client/prepare_grpc.h"
#include "client/status.h"
#include "grpc/health/v1/health.grpc.pb.h"

namespace nsa::metadata::client {

using grpc::health::v1::Health;
using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

std::string ServingStatusName(ServingStatus status) {
  switch (status) {
    case ServingStatus::kServing:
      return "SERVING";
    case ServingStatus::kNotServing:
      return "NOT_SERVING";
    case ServingStatus::kServiceUnknown:
      return "SERVICE_UNKNOWN";
    case ServingStatus::kUnknown:
      break;
  }
  return "UNKNOWN";
}

absl::StatusOr<ServingStatus> CheckHealth(const std::string& target, const std::string& service,
                                          const ClientOptions& options) {
  PrepareGrpc();
  grpc::ClientContext context;
  if (options.timeout != absl::ZeroDuration()) {
    context.set_deadline(absl::ToChronoTime(absl::Now() + options.timeout));
  }
  HealthCheckRequest request;
  request.set_service(service);
  HealthCheckResponse response;
  grpc::ChannelArguments arguments;
  if (!options.server_name.empty()) arguments.SetSslTargetNameOverride(options.server_name);
  const auto credentials = options.credentials == nullptr ? grpc::InsecureChannelCredentials() : options.credentials;
  const auto stub = Health::NewStub(grpc::CreateCustomChannel(target, credentials, arguments));
  const grpc::Status status = stub->Check(&context, request, &response);
  if (!status.ok()) return ToAbslStatus(status);
  return static_cast<ServingStatus>(response.status());
}

}  // namespace nsa::metadata::client
