// What nsa_metadata._local does, on the host and on CUDA devices.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "kernels/kernel.h"
#include "kernels/request_batch.h"

namespace nsa::metadata::local {

// More sequences or tokens the device's launchers don't take.
inline constexpr int64_t kMostOnDevice = int64_t{1} << 29;

// One expansion. Addresses are those of contiguous int32 arrays in one place.
struct Job {
  const int32_t* extend_seq_lens = nullptr;  // [num_sequences]
  const int32_t* seq_lens = nullptr;         // [num_sequences]
  int64_t num_sequences = 0;
  kernels::RequestSpec spec;
  // Null where an output is not asked; else room for `capacity` tokens' values, or for num_sequences + 1.
  kernels::OutputPointers out = {};
  int64_t capacity = 0;
};

enum class HostBackend : uint8_t { kCpu, kReference };

// Of the host's arrays. std::invalid_argument names what is wrong with them, before anything is written. Returns the
// sum of extend_seq_lens.
int64_t ExpandOnHost(const Job& job, HostBackend backend);

// The same of lengths that were looked at, none of them negative, whose sum is `total_tokens`; there is room for all.
// Values past int32 wrap.
void ExpandUnchecked(const Job& job, int64_t total_tokens, HostBackend backend);

// How a device is served.
struct Device {
  // Why the kernels can't run there; empty if they can.
  std::string unusable;
  // "machine code" or "PTX": what they run from.
  std::string tier;
  std::string name;
};

// The functions from here on throw std::runtime_error where a call of CUDA's fails, naming it. `stream` is a
// cudaStream_t of the device's.

bool HasCuda();
Device LookAtDevice(int device);

// Of the device's arrays, by `kernel`, or by what fits the shape. Negative lengths count as 0, values past int32 wrap,
// tokens from `capacity` on are not written. Waits for it, and returns the sum of extend_seq_lens, which may pass
// `capacity`; or, without `wait`, returns nothing at once, and can be captured in a graph.
std::optional<int64_t> ExpandOnDevice(const Job& job, std::optional<kernels::Kernel> kernel, int device,
                                      uintptr_t stream, bool wait);

// The same of the device's arrays by the host's code: copies there and back. Waits for it. std::invalid_argument for a
// sum over 2^29.
int64_t ExpandOnHostForDevice(const Job& job, HostBackend backend, int device, uintptr_t stream);

}  // namespace nsa::metadata::local
