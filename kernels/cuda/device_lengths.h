// The expansion of lengths whose sums the device makes: first the sums, then the tokens.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.h"

namespace nsa::metadata::kernels::cuda {

// Of one request, all but the total and the arrays its outputs are written to. A negative length counts as 0.
struct DeviceLengths {
  const int32_t* extend_seq_lens = nullptr;  // [num_sequences]
  const int32_t* seq_lens = nullptr;         // [num_sequences]
  // num_requests is 1, num_tokens the room there is.
  BatchSize size;
  DeviceRequest request;
};

// Up to this many sequences each block computes the sums for itself, in one launch with the expansion.
inline constexpr int32_t kMostFusedSequences = 1024;

// None for those.
size_t SumsWorkspaceBytes(int32_t num_sequences);

// Expands by `kernel` on `stream`. `total_tokens`, where the sum of extend_seq_lens goes, may be null. The workspace is
// 8-byte aligned. The blocks of the last launch, NumBlocks of `lengths.size`, set `done`. Asynchronous; returns the
// first launch's error.
cudaError_t LaunchFromLengths(Kernel kernel, const DeviceLengths& lengths, int64_t* total_tokens, void* workspace,
                              const DoneFlags& done, cudaStream_t stream);

// The same of more than kMostFusedSequences whose lengths are in the host's memory, which the device can read. They
// come to `copies`, [2][num_sequences] on the device, on the scan's way: a copy before the launch makes the launch wait
// for another engine, which takes 4 us, or 11 where the launch was there first (H100).
cudaError_t LaunchFromHostLengths(Kernel kernel, const DeviceLengths& lengths, int32_t* copies, void* workspace,
                                  const DoneFlags& done, cudaStream_t stream);

}  // namespace nsa::metadata::kernels::cuda
