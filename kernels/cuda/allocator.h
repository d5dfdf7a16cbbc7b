// Where the backend's memory comes from.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>

namespace nsa::metadata::kernels::cuda {

// The runtime, or, in tests, something that lacks memory. What it gives goes back to the runtime. Thread-safe.
class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual cudaError_t AllocatePinned(void** memory, size_t bytes, unsigned flags) {
    return cudaHostAlloc(memory, bytes, flags);
  }
  virtual cudaError_t AllocateDevice(void** memory, size_t bytes) { return cudaMalloc(memory, bytes); }
};

}  // namespace nsa::metadata::kernels::cuda
