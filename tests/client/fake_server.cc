#include "tests/client/fake_server.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>

#include <vector>

#include "client/reference.h"

namespace nsa::metadata::client {
namespace {

Request RequestOf(const v1::ExpandRequest& proto) {
  Request request(proto.mode());
  request.extend_seq_lens = {proto.extend_seq_lens().data(), static_cast<size_t>(proto.extend_seq_lens_size())};
  request.seq_lens = {proto.seq_lens().data(), static_cast<size_t>(proto.seq_lens_size())};
  request.nsa_index_topk = proto.nsa_index_topk();
  for (const int output : proto.outputs()) request.outputs.push_back(static_cast<v1::Output>(output));
  request.request_id = proto.request_id();
  return request;
}

}  // namespace

grpc::Status Refusal(grpc::StatusCode code, const std::string& reason, const std::string& field, int64_t value,
                     int64_t limit, int64_t retry_after_seconds) {
  google::rpc::ErrorInfo info;
  info.set_domain("nsa.metadata.v1");
  info.set_reason(reason);
  (*info.mutable_metadata())["field"] = field;
  (*info.mutable_metadata())["value"] = std::to_string(value);
  (*info.mutable_metadata())["limit"] = std::to_string(limit);
  google::rpc::Status details;
  details.set_code(code);
  details.add_details()->PackFrom(info);
  if (retry_after_seconds > 0) {
    google::rpc::RetryInfo retry;
    retry.mutable_retry_delay()->set_seconds(retry_after_seconds);
    details.add_details()->PackFrom(retry);
  }
  return {code, "refused: " + reason, details.SerializeAsString()};
}

FakeServer::FakeServer(ExpandFunction expand) : expand_(std::move(expand)) {
  grpc::EnableDefaultHealthCheckService(true);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(), &port);
  builder.RegisterService(this);
  server_ = builder.BuildAndStart();
  server_->GetHealthCheckService()->SetServingStatus(v1::MetadataService::service_full_name(), true);
  target_ = "127.0.0.1:" + std::to_string(port);
}

FakeServer::~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }

int FakeServer::calls() {
  const absl::MutexLock lock(&mutex_);
  return calls_;
}

size_t FakeServer::connections() {
  const absl::MutexLock lock(&mutex_);
  return peers_.size();
}

grpc::Status FakeServer::Expand(grpc::ServerContext* context, const v1::ExpandRequest* request,
                                v1::ExpandResponse* response) {
  {
    const absl::MutexLock lock(&mutex_);
    ++calls_;
    peers_.insert(context->peer());
  }
  if (expand_ != nullptr) return expand_(*request, *response);
  *response = Reference(RequestOf(*request));
  return grpc::Status::OK;
}

grpc::Status FakeServer::GetServerInfo(grpc::ServerContext*, const v1::GetServerInfoRequest*,
                                       v1::GetServerInfoResponse* response) {
  response->set_version("fake");
  return grpc::Status::OK;
}

}  // namespace nsa::metadata::client
