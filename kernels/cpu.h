// The CPU's expansion.
#pragma once

#include <cstdint>

#include "kernels/packed_batch.h"

namespace nsa::metadata::kernels {

// Writes the asked outputs of one request, whose lengths are [num_sequences] each, none negative. first_sequence and
// first_token are not looked at.
void ExpandRequestOnCpu(const PackedRequest& request, const int32_t* extend_seq_lens, const int32_t* seq_lens);

// Those of every request of a batch.
void ExpandOnCpu(const PackedBatch& batch);

}  // namespace nsa::metadata::kernels
