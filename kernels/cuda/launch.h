// The kernels' launchers.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/device_batch.h"
#include "kernels/kernel.h"

namespace nsa::metadata::kernels::cuda {

// Kernel parameters hold 4 KiB, and from CUDA 12.1 on 32,764 bytes; but from some 8 KiB on a copy before the launch is
// as quick (H100).
#if CUDART_VERSION >= 12010
inline constexpr size_t kMostInlineBytes = 8'128;
#else
inline constexpr size_t kMostInlineBytes = 4'032;
#endif

// A batch that travels with its launch.
struct InlineBatch {
  BatchSize size;
  alignas(16) unsigned char data[kMostInlineBytes];
};

// What each block of a kernel sets when everything it wrote can be read by the host. Without `flags` none does.
struct DoneFlags {
  uint64_t* flags = nullptr;  // [blocks], memory of the host that the device can write
  uint64_t value = 0;
};

// How many blocks `kernel`, one of the device's, is launched with.
int64_t NumBlocks(Kernel kernel, int64_t num_sequences, int64_t num_tokens);

// Each launches `kernel` on `stream`. Asynchronous; returns the launch's error.

// Copies what the layout of `batch.size` takes of `batch.data`.
cudaError_t LaunchInline(Kernel kernel, const InlineBatch& batch, const DoneFlags& done, cudaStream_t stream);

// `data` is the device's, in the layout of `size`.
cudaError_t LaunchStaged(Kernel kernel, const BatchSize& size, const void* data, const DoneFlags& done,
                         cudaStream_t stream);

// The virtual architecture that the kernels running on the current device were compiled from, as 75 or 90: the device's
// own when there is machine code for it, a lower one when the driver compiled PTX.
cudaError_t CompiledFrom(int* ptx_version);

}  // namespace nsa::metadata::kernels::cuda
