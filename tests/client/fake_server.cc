#include "tests/client/fake_server.h"

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <utility>

#include "client/outputs.h"
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

// The chunk of `whole` with tokens [begin, end).
v1::ExpandResponse Slice(const v1::ExpandResponse& whole, int64_t begin, int64_t end) {
  v1::ExpandResponse chunk;
  chunk.set_request_id(whole.request_id());
  chunk.set_total_tokens(whole.total_tokens());
  chunk.set_mode(whole.mode());
  for (const OutputField& field : AllOutputs()) {
    const Values& from = (whole.*field.get)();
    if (from.empty()) continue;
    const bool by_sequence = field.output == v1::OUTPUT_CU_SEQLENS_Q || field.output == v1::OUTPUT_CU_SEQLENS_K;
    const bool one_more = !field.per_token && end == whole.total_tokens();
    const auto first = from.begin() + (by_sequence ? 0 : begin);
    const auto last = by_sequence ? (begin == 0 ? from.end() : first) : from.begin() + end + (one_more ? 1 : 0);
    (chunk.*field.mutate)()->Add(first, last);
  }
  return chunk;
}

}  // namespace

v1::ExpandResponse ReferenceOf(const v1::ExpandRequest& request) { return Reference(RequestOf(request)); }

std::vector<v1::ExpandStreamResponse> ChunksOf(const v1::ExpandResponse& whole, int64_t tokens) {
  std::vector<v1::ExpandStreamResponse> chunks;
  const int64_t size = tokens == 0 ? whole.total_tokens() : tokens;
  int64_t begin = 0;
  do {
    const int64_t end = std::min(begin + size, whole.total_tokens());
    v1::ExpandStreamResponse& message = chunks.emplace_back();
    *message.mutable_expansion() = Slice(whole, begin, end);
    message.set_first_token(begin);
    begin = end;
  } while (begin < whole.total_tokens());
  chunks.back().set_last_chunk(true);
  return chunks;
}

v1::ExpandStreamResponse StreamedRefusal(uint64_t request_id, grpc::StatusCode code, v1::RefusalReason reason) {
  v1::ExpandStreamResponse message;
  message.mutable_refusal()->set_request_id(request_id);
  message.mutable_refusal()->set_code(code);
  message.mutable_refusal()->set_reason(reason);
  message.set_last_chunk(true);
  return message;
}

v1::ExpandStreamRequest ReadFrom(FakeStream& stream) {
  v1::ExpandStreamRequest message;
  EXPECT_TRUE(stream.Read(&message)) << "the client sends no more";
  return message;
}

void WriteTo(FakeStream& stream, const std::vector<v1::ExpandStreamResponse>& messages) {
  for (const v1::ExpandStreamResponse& message : messages) stream.Write(message);
}

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

FakeServer::FakeServer(ExpandFunction expand, StreamFunction stream)
    : expand_(std::move(expand)), stream_(std::move(stream)) {
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

int FakeServer::streams() {
  const absl::MutexLock lock(&mutex_);
  return streams_;
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
  return Answer(*request, *response);
}

grpc::Status FakeServer::ExpandStream(grpc::ServerContext* context, FakeStream* stream) {
  {
    const absl::MutexLock lock(&mutex_);
    ++streams_;
    peers_.insert(context->peer());
  }
  if (stream_ != nullptr) return stream_(*stream);
  v1::ExpandStreamRequest message;
  while (stream->Read(&message)) {
    v1::ExpandResponse response;
    const grpc::Status status = Answer(message.expand(), response);
    WriteTo(*stream, status.ok() ? ChunksOf(response, 0)
                                 : std::vector{StreamedRefusal(message.expand().request_id(), status.error_code(),
                                                               v1::REFUSAL_REASON_TOO_MANY_TOKENS)});
  }
  return grpc::Status::OK;
}

grpc::Status FakeServer::Answer(const v1::ExpandRequest& request, v1::ExpandResponse& response) const {
  if (expand_ != nullptr) return expand_(request, response);
  response = ReferenceOf(request);
  return grpc::Status::OK;
}

grpc::Status FakeServer::GetServerInfo(grpc::ServerContext*, const v1::GetServerInfoRequest*,
                                       v1::GetServerInfoResponse* response) {
  response->set_version("fake");
  return grpc::Status::OK;
}

}  // namespace nsa::metadata::client
