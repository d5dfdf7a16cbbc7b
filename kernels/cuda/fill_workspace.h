// Memory of expansions that are waited for.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/cuda/launch.h"

namespace nsa::metadata::kernels::cuda {

// While it lives, its thread allocates and frees though another captures a graph, which else forbids it to all threads.
class BesideCaptures {
 public:
  BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

// What FillDraftExtendMetadata needs, on the device that is current when it is first used; kept from one expansion to
// the next, each over before the next begins. Not thread-safe. To be destroyed before the device is reset.
class FillWorkspace {
 public:
  // Makes room for an expansion on `stream` that takes so many bytes of the device's memory, at least.
  cudaError_t Prepare(size_t bytes, cudaStream_t stream);
  // After an error: what the stream was to clear may not be, and the next Prepare begins anew.
  void Forget() { memory_bytes_ = 0; }
  // After Prepare: those bytes; where the device leaves the sum; and where its blocks say that they are done, or none
  // where they are too many.
  void* scratch() const { return static_cast<unsigned char*>(memory_.get()) + kEndedBytes; }
  int64_t* total_tokens() const { return &mapped_->total_tokens; }
  DoneFlags NextFlags(int64_t blocks);
  // Returns once all that the expansion wrote is there, with its sum.
  cudaError_t Wait(const DoneFlags& done, int64_t blocks, cudaStream_t stream, int64_t* total_tokens);

 private:
  // From here on the stream says it sooner than the last of them (H100).
  static constexpr int64_t kMostBlocks = 512;
  // The host's memory, which the device writes.
  struct Shared {
    int64_t total_tokens;
    uint64_t flags[kMostDoneFlags];
  };
  struct FreeShared {
    void operator()(Shared* memory) const {
      const BesideCaptures beside;
      cudaFreeHost(memory);
    }
  };
  struct FreeScratch {
    void operator()(void* memory) const {
      const BesideCaptures beside;
      cudaFree(memory);
    }
  };

  std::unique_ptr<Shared, FreeShared> shared_;
  Shared* mapped_ = nullptr;  // the same, as the device sees it
  uint64_t launches_ = 0;
  std::unique_ptr<void, FreeScratch> memory_;  // kEndedBytes for DoneFlags, then the scratch
  size_t memory_bytes_ = 0;
};

}  // namespace nsa::metadata::kernels::cuda
