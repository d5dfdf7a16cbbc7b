#include "kernels/cuda/fill_workspace.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <utility>

namespace nsa::metadata::kernels::cuda {
namespace {

// Looks for a while. Who has to wait longer asks the stream, which says of errors, and may let the processor go.
bool AreSet(uint64_t* flags, uint64_t value, int64_t count) {
  constexpr std::chrono::microseconds kWhile(50);
  constexpr int64_t kLooksBetweenClocks = 1 << 10;
  std::chrono::steady_clock::time_point end;
  int64_t looks = 0;
  for (int64_t i = 0; i < count; ++i) {
    const std::atomic_ref<uint64_t> flag(flags[i]);
    while (flag.load(std::memory_order_acquire) != value) {
      if (looks++ % kLooksBetweenClocks != 0) continue;
      const auto now = std::chrono::steady_clock::now();
      if (looks == 1) {
        end = now + kWhile;
      } else if (now >= end) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace

cudaError_t FillWorkspace::Prepare(size_t bytes, cudaStream_t stream) {
  if (shared_ == nullptr) {
    const BesideCaptures beside;
    void* pinned = nullptr;
    if (const cudaError_t error = cudaHostAlloc(&pinned, sizeof(Shared), cudaHostAllocMapped); error != cudaSuccess) {
      return error;
    }
    std::memset(pinned, 0, sizeof(Shared));
    std::unique_ptr<Shared, FreeShared> shared(static_cast<Shared*>(pinned));
    void* mapped = nullptr;
    if (const cudaError_t error = cudaHostGetDevicePointer(&mapped, pinned, 0); error != cudaSuccess) return error;
    mapped_ = static_cast<Shared*>(mapped);
    shared_ = std::move(shared);
  }
  bytes += kEndedBytes;
  if (bytes <= memory_bytes_) return cudaSuccess;
  const BesideCaptures beside;
  memory_.reset();
  memory_bytes_ = 0;
  void* memory = nullptr;
  if (const cudaError_t error = cudaMalloc(&memory, bytes); error != cudaSuccess) return error;
  memory_.reset(memory);
  if (const cudaError_t error = cudaMemsetAsync(memory, 0, kEndedBytes, stream); error != cudaSuccess) {
    return error;
  }
  memory_bytes_ = bytes;
  return cudaSuccess;
}

DoneFlags FillWorkspace::NextFlags(int64_t blocks) {
  if (blocks > kMostBlocks) return {};
  DoneFlags done = {.flags = mapped_->flags, .value = ++launches_};
  if (blocks > kMostDoneFlags) done.ended = static_cast<uint32_t*>(memory_.get());
  return done;
}

cudaError_t FillWorkspace::Wait(const DoneFlags& done, int64_t blocks, cudaStream_t stream, int64_t* total_tokens) {
  if (done.flags == nullptr || !AreSet(shared_->flags, done.value, done.ended == nullptr ? blocks : 1)) {
    if (const cudaError_t error = cudaStreamSynchronize(stream); error != cudaSuccess) return error;
  }
  *total_tokens = shared_->total_tokens;
  return cudaSuccess;
}

}  // namespace nsa::metadata::kernels::cuda
