// The Open Inference Protocol's ModelInfer: messages to a validated request, and the head of its answer.
#pragma once

#include <cstddef>
#include <optional>

#include "inference/inference.pb.h"
#include "server/clock.h"
#include "server/codec.h"
#include "server/options.h"
#include "server/refusal.h"

namespace nsa::metadata::server {

// What a request has that Expand's has not.
struct InferenceRequest {
  // In kInferenceModels; nothing until it is known.
  std::optional<size_t> model;
  // From the arrival; 0: none.
  Clock::duration timeout{0};
};

// As the other Validate. The lengths stay in `request`.
std::optional<Refusal> Validate(const inference::ModelInferRequest& request, const RequestLimits& limits,
                                Expansion* expansion, InferenceRequest* inference);

}  // namespace nsa::metadata::server
