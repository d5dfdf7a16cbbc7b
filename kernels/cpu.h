// The CPU's expansion of a batch, for backends that leave some to it.
#pragma once

#include "kernels/packed_batch.h"

namespace nsa::metadata::kernels {

// Computes every asked output of every request, as the CPU backend's lanes do.
void ExpandOnCpu(const PackedBatch& batch);

}  // namespace nsa::metadata::kernels
