// Which of a device's kernels computes a batch.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

#include "kernels/kernel.h"

namespace nsa::metadata::kernels {

// How the kernel is chosen. The flag --kernel.
enum class KernelChoice : uint8_t {
  kAdaptive,   // what measured best for the batch's shape
  kThreshold,  // linear up to a number of sequences, binary above
  kLinear,
  kBinary,
  kRows,
  kTile,
};

// Nothing for a name that is no choice.
std::optional<KernelChoice> ParseKernelChoice(std::string_view name);

struct LaunchPlan {
  KernelChoice choice = KernelChoice::kAdaptive;
  // For kThreshold: linear search up to this many sequences.
  int64_t threshold = 16;
};

// One of kLinear, kBinary, kRows and kTile.
Kernel ChooseKernel(const LaunchPlan& plan, int64_t num_sequences, int64_t total_tokens);

}  // namespace nsa::metadata::kernels
