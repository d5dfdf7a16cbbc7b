// A lane on a CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <chrono>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/handles.h"
#include "kernels/cuda/launch.h"

namespace nsa::metadata::kernels::cuda {

// A stream and the batch's lengths, which travel to the device as a kernel parameter, or, past a size, by one copy
// before it: as they are where they are one request's, and with sums that the host has made where each request's begin
// anew. Those of one request of more than kMostFusedSequences the kernel that makes the sums reads from the host's
// pinned memory. The kernel writes the outputs where they are sent from: pinned memory, across the bus. Nothing is
// allocated after Create.
class CudaLane final : public Lane {
 public:
  // `options` name an allocator.
  static absl::StatusOr<std::unique_ptr<CudaLane>> Create(const CudaOptions& options, const LaneLimits& limits);

  RequestBatch& batch() override { return batch_; }
  absl::StatusOr<Kernel> Expand() override;

 private:
  CudaLane(const CudaOptions& options, const LaneLimits& limits);
  absl::StatusOr<Kernel> ExpandOnDevice();
  // What a batch takes of the device's memory.
  void* batch_on_device() const { return static_cast<unsigned char*>(on_device_.get()) + kEndedBytes; }
  cudaError_t Launch(Kernel kernel, const DoneFlags& done);
  // Of one request: the device makes the sums.
  cudaError_t LaunchLengths(Kernel kernel, const DoneFlags& done);
  // Until so many of the kernel's flags are set.
  absl::Status AwaitDone(int64_t count) const;
  // Whether the stream is done; DEADLINE_EXCEEDED when it is not at `deadline`.
  absl::StatusOr<bool> Done(std::chrono::steady_clock::time_point deadline) const;

  const CudaOptions options_;
  RequestBatch batch_;
  InlineBatch inline_;
  Stream stream_;
  PinnedMemory pinned_;     // what of a batch does not travel with the launch: its layout, or its lengths
  DeviceMemory on_device_;  // kEndedBytes for DoneFlags, then what a batch takes
  PinnedMemory done_;       // [kMostDoneFlags]
  uint64_t launches_ = 0;
};

}  // namespace nsa::metadata::kernels::cuda
