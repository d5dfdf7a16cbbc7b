#include "tests/e2e/bad_kernels.h"

#include <cuda_runtime.h>

#include <cstdint>

namespace nsa::metadata::testing {
namespace {

__global__ void Write(int* nowhere) { *nowhere = 1; }

// Two blocks of so many threads fill a multiprocessor of 2,048.
constexpr int kThreads = 1024;

__global__ void __launch_bounds__(kThreads, 2) Spin(uint64_t nanoseconds) {
  uint64_t begin = 0;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(begin));
  for (uint64_t now = begin; now - begin < nanoseconds;) asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
}

}  // namespace

const char* WriteOutOfBounds() {
  Write<<<1, 1>>>(reinterpret_cast<int*>(uintptr_t{64}));
  return cudaGetErrorName(cudaDeviceSynchronize());
}

const char* OccupyDevice(int seconds) {
  int device = 0;
  int multiprocessors = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  cudaStream_t stream = nullptr;  // a stream of its own, or the next one would wait for it
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  Spin<<<2 * multiprocessors, kThreads, 0, stream>>>(uint64_t{1'000'000'000} * seconds);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? "" : cudaGetErrorName(error);
}

}  // namespace nsa::metadata::testing
