// How a request spent its time.
#pragma once

#include <cstdint>

#include "kernels/kernel.h"
#include "server/clock.h"

namespace nsa::metadata::server {

// Of a request that was computed, or that waited to be; nanoseconds, by the stages of Timing and of
// nsa_metadata_stage_seconds.
struct Journey {
  uint64_t parse_ns = 0;
  uint64_t admit_ns = 0;
  uint64_t queue_ns = 0;
  uint64_t pack_ns = 0;
  uint64_t device_ns = 0;
  uint64_t frame_ns = 0;
  TimePoint framed;  // when its answer was complete
  // Of the batch it was in; no requests where it was in none.
  uint32_t batch_requests = 0;
  int64_t batch_tokens = 0;
  kernels::Kernel kernel = kernels::Kernel::kCpu;
  // Its own.
  uint32_t num_sequences = 0;
  int64_t total_tokens = 0;
};

}  // namespace nsa::metadata::server
