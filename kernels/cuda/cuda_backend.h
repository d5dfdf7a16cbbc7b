// The backend on a CUDA device. Knows no CUDA header, so that whoever makes it need not.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/backend.h"
#include "kernels/launch_plan.h"

namespace nsa::metadata::kernels {
namespace cuda {
class Allocator;
}  // namespace cuda

struct CudaOptions {
  int device = 0;
  LaunchPlan plan = {};
  // Batches of fewer tokens are computed on the CPU, by the thread that has them: below some size that is quicker.
  int64_t cpu_below_tokens = 0;
  // A batch that is longer on the device than this has failed.
  std::chrono::nanoseconds timeout = std::chrono::seconds(1);
  // What it takes its memory from, all of it at the start; outlives the backend. nullptr: the CUDA runtime.
  cuda::Allocator* allocator = nullptr;
};

// The CUDA toolkit this build was made with, as "13.0"; "none" for a build without.
const char* CudaVersion();

// A backend on the device, with every kernel launched once over small batches. UNIMPLEMENTED when this build has no
// CUDA; UNAVAILABLE, saying what and why, when there is no driver, no such device, or it does not work. A process whose
// device has failed once gets no other: the errors that end one end the whole context, and a kernel that hangs can't be
// stopped.
absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaOptions& options);

}  // namespace nsa::metadata::kernels
