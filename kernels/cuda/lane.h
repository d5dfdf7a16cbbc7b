// A lane on a CUDA device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/cuda/device_batch.h"
#include "kernels/cuda/handles.h"
#include "kernels/launch_plan.h"

namespace nsa::metadata::kernels::cuda {

// A stream, the batch's lengths, and memory that takes them, and the sums over them, to the device in one copy. The
// kernel writes the outputs where they are sent from: pinned memory, across the bus.
class CudaLane final : public Lane {
 public:
  static absl::StatusOr<std::unique_ptr<CudaLane>> Create(int device, const LaunchPlan& plan, const LaneLimits& limits);

  PackedBatch& batch() override { return batch_; }
  absl::StatusOr<Kernel> Expand() override;

 private:
  CudaLane(int device, const LaunchPlan& plan, const LaneLimits& limits);
  // Lays the batch out in pinned_; returns how many bytes go to the device.
  size_t Stage(DeviceBatch* on_device);

  const int device_;
  const LaunchPlan plan_;
  std::vector<int32_t> extend_seq_lens_;
  std::vector<int32_t> seq_lens_;
  PackedBatch batch_;
  Stream stream_;
  PinnedMemory pinned_;
  DeviceMemory on_device_;
};

}  // namespace nsa::metadata::kernels::cuda
