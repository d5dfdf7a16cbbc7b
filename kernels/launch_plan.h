// Which kernel computes a batch.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/backend.h"

namespace nsa::metadata::kernels {

// How a device's kernel is chosen. The flag --kernel.
enum class KernelChoice : uint8_t {
  kAdaptive,   // what measured best for the batch
  kThreshold,  // linear up to a number of sequences, binary above
  kLinear,
  kBinary,
};

// Nothing for a name that is no choice.
std::optional<KernelChoice> ParseKernelChoice(std::string_view name);

struct LaunchPlan {
  KernelChoice choice = KernelChoice::kAdaptive;
  // For kThreshold: linear search up to this many sequences.
  int64_t threshold = 16;
};

// kLinear or kBinary.
Kernel ChooseKernel(const LaunchPlan& plan, int64_t num_sequences);

}  // namespace nsa::metadata::kernels
