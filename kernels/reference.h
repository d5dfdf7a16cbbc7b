// The expansion token by token from the definitions: slow, plain, what the others are tested against.
#pragma once

#include "kernels/request_batch.h"

namespace nsa::metadata::kernels {

// As ExpandRequestOnCpu.
void ExpandRequestByReference(const BatchedRequest& request);

}  // namespace nsa::metadata::kernels
