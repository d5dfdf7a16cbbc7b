// Owners of what the CUDA runtime hands out.
#pragma once

#include <cuda_runtime.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <type_traits>

#include "absl/status/status.h"

namespace nsa::metadata::kernels::cuda {

// How the first lane failed; kOk until then. From then on nothing is given back to the runtime: a kernel that hangs may
// still write there, and the runtime's calls would wait for it.
inline std::atomic<absl::StatusCode> device_failure{absl::StatusCode::kOk};
inline bool DeviceLost() { return device_failure != absl::StatusCode::kOk; }

struct DestroyStream {
  using pointer = cudaStream_t;
  void operator()(cudaStream_t stream) const {
    if (!DeviceLost()) cudaStreamDestroy(stream);
  }
};
using Stream = std::unique_ptr<std::remove_pointer_t<cudaStream_t>, DestroyStream>;

struct FreeDevice {
  void operator()(void* memory) const {
    if (!DeviceLost()) cudaFree(memory);
  }
};
using DeviceMemory = std::unique_ptr<void, FreeDevice>;

struct FreePinned {
  void operator()(void* memory) const {
    if (!DeviceLost()) cudaFreeHost(memory);
  }
};
using PinnedMemory = std::unique_ptr<void, FreePinned>;

}  // namespace nsa::metadata::kernels::cuda
