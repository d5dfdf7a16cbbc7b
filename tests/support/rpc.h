// Requests over the wire, for tests.
#pragma once

#include <chrono>
#include <string>

#include "grpcpp/client_context.h"
#include "inference/inference.pb.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"
#include "tests/support/requests.h"

namespace nsa::metadata::testing {

v1::ExpandRequest ToProto(const TestRequest& request);

// A valid request of one sequence, three tokens.
v1::ExpandRequest SmallRequest();

// The arrays of a response, by output.
Arrays ToArrays(const v1::ExpandResponse& response);

// The same arrays as Expand answers them; those of raw_output_contents that `outputs` names.
v1::ExpandResponse ToExpandResponse(const inference::ModelInferResponse& response);

struct Reply {
  grpc::Status status;
  v1::ExpandResponse response;
};

// One call, with a deadline that only a hang reaches.
Reply Call(v1::MetadataService::Stub& stub, const v1::ExpandRequest& request,
           std::chrono::milliseconds timeout = std::chrono::seconds(60));

// The reason, field, value and limit of a refused call's ErrorInfo; the status's text where there is none.
std::string ErrorInfoOf(const grpc::Status& status);

}  // namespace nsa::metadata::testing
