// The expansion token by token from the definitions: slow, plain, what the others are tested against.
#pragma once

#include <cstdint>

#include "kernels/packed_batch.h"

namespace nsa::metadata::kernels {

// As ExpandRequestOnCpu.
void ExpandRequestByReference(const PackedRequest& request, const int32_t* extend_seq_lens, const int32_t* seq_lens);

}  // namespace nsa::metadata::kernels
