#include "tests/support/rpc.h"

#include <google/protobuf/reflection.h>

#include <algorithm>
#include <cstring>
#include <string>

#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace nsa::metadata::testing {

v1::ExpandRequest ToProto(const TestRequest& request) {
  v1::ExpandRequest proto;
  *proto.mutable_extend_seq_lens() = {request.extend_seq_lens.begin(), request.extend_seq_lens.end()};
  *proto.mutable_seq_lens() = {request.seq_lens.begin(), request.seq_lens.end()};
  proto.set_nsa_index_topk(request.spec.nsa_index_topk);
  proto.set_mode(static_cast<v1::SequenceMode>(request.spec.mode));
  for (kernels::Output output : kernels::kAllOutputs) {
    if (request.spec.outputs.Has(output)) proto.add_outputs(static_cast<v1::Output>(static_cast<int>(output) + 1));
  }
  return proto;
}

v1::ExpandRequest SmallRequest() {
  v1::ExpandRequest request;
  request.add_extend_seq_lens(3);
  request.add_seq_lens(10);
  request.set_nsa_index_topk(2048);
  return request;
}

Arrays ToArrays(const v1::ExpandResponse& response) {
  Arrays arrays;
  for (kernels::Output output : kernels::kAllOutputs) {
    const auto* field = response.GetDescriptor()->FindFieldByName(kernels::OutputName(output));
    const auto values = response.GetReflection()->GetRepeatedFieldRef<int32_t>(response, field);
    arrays[static_cast<size_t>(output)].assign(values.begin(), values.end());
  }
  return arrays;
}

v1::ExpandResponse ToExpandResponse(const inference::ModelInferResponse& response) {
  v1::ExpandResponse arrays;
  for (int i = 0; i < std::min(response.outputs_size(), response.raw_output_contents_size()); ++i) {
    const auto* field = arrays.GetDescriptor()->FindFieldByName(response.outputs(i).name());
    if (field == nullptr) continue;
    const std::string& raw = response.raw_output_contents(i);
    const auto to = arrays.GetReflection()->GetMutableRepeatedFieldRef<int32_t>(&arrays, field);
    for (size_t at = 0; at + sizeof(int32_t) <= raw.size(); at += sizeof(int32_t)) {
      int32_t value;
      memcpy(&value, raw.data() + at, sizeof value);
      to.Add(value);
    }
  }
  return arrays;
}

Reply Call(v1::MetadataService::Stub& stub, const v1::ExpandRequest& request, std::chrono::milliseconds timeout) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  Reply reply;
  reply.status = stub.Expand(&context, request, &reply.response);
  return reply;
}

std::string ErrorInfoOf(const grpc::Status& status) {
  google::rpc::Status details;
  google::rpc::ErrorInfo info;
  if (!details.ParseFromString(status.error_details()) || details.details().empty() ||
      !details.details(0).UnpackTo(&info)) {
    return "no ErrorInfo: " + status.error_message();
  }
  const auto& metadata = info.metadata();
  return info.reason() + " " + metadata.at("field") + " " + metadata.at("value") + " " + metadata.at("limit");
}

}  // namespace nsa::metadata::testing
