#include "kernels/launch_plan.h"

namespace nsa::metadata::kernels {
namespace {

Kernel Adaptive(int64_t num_sequences, int64_t total_tokens) {
  if (total_tokens > 65'536) return Kernel::kTile;
  if (total_tokens <= 32 * num_sequences) return Kernel::kRows;
  return Kernel::kBinary;
}

}  // namespace

std::optional<KernelChoice> ParseKernelChoice(std::string_view name) {
  if (name == "adaptive") return KernelChoice::kAdaptive;
  if (name == "threshold") return KernelChoice::kThreshold;
  if (name == "linear") return KernelChoice::kLinear;
  if (name == "binary") return KernelChoice::kBinary;
  if (name == "rows") return KernelChoice::kRows;
  if (name == "tile") return KernelChoice::kTile;
  return std::nullopt;
}

Kernel ChooseKernel(const LaunchPlan& plan, int64_t num_sequences, int64_t total_tokens) {
  switch (plan.choice) {
    case KernelChoice::kAdaptive:
      return Adaptive(num_sequences, total_tokens);
    case KernelChoice::kThreshold:
      return num_sequences <= plan.threshold ? Kernel::kLinear : Kernel::kBinary;
    case KernelChoice::kLinear:
      return Kernel::kLinear;
    case KernelChoice::kBinary:
      return Kernel::kBinary;
    case KernelChoice::kRows:
      return Kernel::kRows;
    case KernelChoice::kTile:
      return Kernel::kTile;
  }
  return Kernel::kBinary;
}

}  // namespace nsa::metadata::kernels
