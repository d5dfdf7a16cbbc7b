#include "client/health.h"

#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/generic/generic_stub.h>

#include "absl/synchronization/notification.h"
#include "client/status.h"
// For gRPC's serialization of messages, whose own header is elsewhere in other releases.
#include "nsa/metadata/v1/metadata.grpc.pb.h"

namespace nsa::metadata::client {
namespace {

// gRPC's packages carry no header for health.proto. Its two messages have one field each, so an Empty whose unknown
// field is that one has the same bytes.
using Message = google::protobuf::Empty;
constexpr int kServiceField = 1;  // HealthCheckRequest.service, a string.
constexpr int kStatusField = 1;   // HealthCheckResponse.status, an enum.

Message CheckRequest(const std::string& service) {
  Message request;
  request.GetReflection()->MutableUnknownFields(&request)->AddLengthDelimited(kServiceField, service);
  return request;
}

ServingStatus StatusOf(const Message& response) {
  const google::protobuf::UnknownFieldSet& fields = response.GetReflection()->GetUnknownFields(response);
  ServingStatus status = ServingStatus::kUnknown;
  for (int i = 0; i < fields.field_count(); ++i) {
    const google::protobuf::UnknownField& field = fields.field(i);
    if (field.number() == kStatusField && field.type() == google::protobuf::UnknownField::TYPE_VARINT) {
      status = static_cast<ServingStatus>(field.varint());
    }
  }
  return status;
}

}  // namespace

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
                                          absl::Duration timeout) {
  grpc::TemplatedGenericStub<Message, Message> stub(grpc::CreateChannel(target, grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  if (timeout != absl::ZeroDuration()) context.set_deadline(absl::ToChronoTime(absl::Now() + timeout));
  const Message request = CheckRequest(service);
  Message response;
  grpc::Status status;
  absl::Notification done;
  stub.UnaryCall(&context, "/grpc.health.v1.Health/Check", grpc::StubOptions(), &request, &response,
                 [&](grpc::Status result) {
                   status = std::move(result);
                   done.Notify();
                 });
  done.WaitForNotification();
  if (!status.ok()) return ToAbslStatus(status);
  return StatusOf(response);
}

}  // namespace nsa::metadata::client
