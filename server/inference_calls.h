// The Open Inference Protocol's calls.
#pragma once

#include "server/call_queue.h"
#include "server/service.h"

namespace nsa::metadata::server {

// Begins to take ModelInfer calls from `queue`.
void AwaitModelInfer(CallContext& context, CallQueue& queue);
// Likewise those of each of the other methods.
void AwaitInferenceQuestions(CallContext& context, CallQueue& queue);

}  // namespace nsa::metadata::server
