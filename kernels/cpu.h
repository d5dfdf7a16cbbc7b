// The CPU's expansion.
#pragma once

#include "kernels/request_batch.h"

namespace nsa::metadata::kernels {

// Writes the asked outputs of one request, whose lengths are none of them negative.
void ExpandRequestOnCpu(const BatchedRequest& request);

// Those of every request of a batch.
void ExpandOnCpu(const RequestBatch& batch);

}  // namespace nsa::metadata::kernels
