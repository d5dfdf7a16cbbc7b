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
inline constexpr size_t kMostInlineBytes = 8'448;
#else
inline constexpr size_t kMostInlineBytes = 4'032;
#endif

// Where one request asks for more than the first two outputs, of which much is read: from here on a copy of its
// lengths, half of what its layout takes, is as quick.
inline constexpr size_t kMostInlineBytesOfAll = 4'368;

// A batch that travels with its launch.
struct InlineBatch {
  BatchSize size;
  alignas(16) unsigned char data[kMostInlineBytes];
};

// What the blocks of a kernel set when everything they wrote can be read by the host: each its own flag, or, with
// `ended`, the last block the only one. Without `flags` none does.
struct DoneFlags {
  uint64_t* flags = nullptr;  // [1 or blocks], memory of the host that the device can write
  uint64_t value = 0;
  uint32_t* ended = nullptr;  // how many have; the device's, 0 before a launch and after it
};

// From so many blocks on the host sees one flag sooner than all (H100).
inline constexpr int64_t kMostDoneFlags = 32;
// What `ended` takes before memory that is aligned for anything.
inline constexpr size_t kEndedBytes = 256;

// How many blocks `kernel`, one of the device's, is launched with.
int64_t NumBlocks(Kernel kernel, const BatchSize& size);

// Each launches `kernel` on `stream`. Asynchronous; returns the launch's error.

// Copies what the layout of `batch.size` takes of `batch.data`.
cudaError_t LaunchInline(Kernel kernel, const InlineBatch& batch, const DoneFlags& done, cudaStream_t stream);

// `data` is the device's, in the layout of `size`.
cudaError_t LaunchStaged(Kernel kernel, const BatchSize& size, const void* data, const DoneFlags& done,
                         cudaStream_t stream);

// The kernels' code as the current device runs it.
struct RunningCode {
  int compiled_from = 0;      // the virtual architecture, as 75 or 90
  bool machine_code = false;  // that of the build; else the driver's, of the build's PTX
};
cudaError_t GetRunningCode(RunningCode* code);

}  // namespace nsa::metadata::kernels::cuda
