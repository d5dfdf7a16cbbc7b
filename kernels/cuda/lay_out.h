// A batch as the bytes that the kernels read.
#pragma once

#include "absl/status/statusor.h"
#include "kernels/cuda/device_batch.h"
#include "kernels/request_batch.h"

namespace nsa::metadata::kernels::cuda {

// INVALID_ARGUMENT when its tokens, and the numbers left out between requests, pass int32, or there are more requests
// than kMostRequests.
absl::StatusOr<BatchSize> SizeOf(const RequestBatch& batch);

// A request as the kernels read it, whose sequences and tokens are numbered from these on.
DeviceRequest ToDevice(const BatchedRequest& request, int32_t first_sequence, int32_t first_token);

// Writes BatchLayout(size).bytes bytes from `base` on, which is 8-byte aligned; `size` is SizeOf(batch).
void LayOut(const RequestBatch& batch, const BatchSize& size, unsigned char* base);

}  // namespace nsa::metadata::kernels::cuda
