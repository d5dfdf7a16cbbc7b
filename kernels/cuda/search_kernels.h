// The search kernels' launchers.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/device_batch.h"

namespace nsa::metadata::kernels::cuda {

// Each launches one kernel on `stream`: 256 threads a block and ceil(tokens / 256) blocks, at least one, `tokens` being
// how many the batch has or, where only the device knows that, its capacity. Asynchronous; returns the launch's error.

// Each thread walks the sequences up to its own. Reads no sums: nothing has to be computed before.
cudaError_t LaunchLinear(const DeviceBatch& batch, int64_t tokens, cudaStream_t stream);

// Each thread searches `first_tokens`.
cudaError_t LaunchBinary(const DeviceBatch& batch, int64_t tokens, cudaStream_t stream);

// Computes first_tokens [num_sequences + 1] and sums_before [num_sequences] for a batch of one request, in one block.
cudaError_t LaunchSums(const DeviceBatch& batch, int64_t* first_tokens, SumsBefore* sums_before, cudaStream_t stream);

// The total of a batch's tokens, into `total` on the device.
cudaError_t LaunchTotal(const DeviceBatch& batch, int64_t* total, cudaStream_t stream);

// The virtual architecture that the kernels running on the current device were compiled from, as 75 or 90: the device's
// own when there is machine code for it, a lower one when the driver compiled PTX.
cudaError_t CompiledFrom(int* ptx_version);

}  // namespace nsa::metadata::kernels::cuda
