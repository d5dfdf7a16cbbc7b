// A device that fails when it is told to.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "kernels/backend.h"

namespace nsa::metadata::testing {

// What a faulty device does. Outlives the backend.
struct Faults {
  // How long each batch takes.
  std::chrono::nanoseconds batch_time{0};
  // The batch that fails, from 1, and all after it; 0: none.
  std::atomic<int64_t> fail_at{0};
  // How it fails.
  absl::Status fault = absl::UnavailableError("an injected fault");
  // How long it takes to fail.
  std::chrono::nanoseconds time_to_fail{0};
  // The allocation that fails, from 1: of a lane or of memory for outputs; 0: none.
  int64_t fail_allocation = 0;
  // Bytes that each batch takes and never gives back.
  size_t leak = 0;

  // Batches and allocations so far.
  std::atomic<int64_t> batches{0};
  std::atomic<int64_t> allocations{0};
  // How often all of the failed batches' outputs have been written over since.
  std::atomic<int64_t> scribbles{0};
};

// Says that it is a CUDA device, and computes as the CPU backend does. Once a batch has failed it writes into that
// batch's outputs for as long as the backend lives, as a kernel may that hangs.
std::unique_ptr<kernels::Backend> MakeFaultyBackend(Faults& faults);

}  // namespace nsa::metadata::testing
