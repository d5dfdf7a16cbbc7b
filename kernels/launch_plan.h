// Which of a device's kernels computes a batch, and how its lengths get there.
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

// How a batch's lengths reach the kernel.
enum class Input : uint8_t {
  // In the launch, as a kernel parameter, up to a size. Past it one request's are copied, or, where they are many, read
  // from the host by the kernel that makes the sums; those of several are copied with their sums.
  kInline,
  kCopied,  // copied to the device before the launch
};

struct LaunchPlan {
  KernelChoice choice = KernelChoice::kAdaptive;
  // For kThreshold: linear search up to this many sequences.
  int64_t threshold = 16;
  // Nothing: as kInline.
  std::optional<Input> input = std::nullopt;
};

// What a kernel's time depends on.
struct BatchShape {
  int64_t num_sequences = 0;
  int64_t total_tokens = 0;
  // Whether no request asks more than seqlens_expanded and nsa_cache_seqlens.
  bool first_two = true;
  // Whether the outputs lie in the host's memory, across the bus.
  bool to_host = false;
  // Whether the lengths lie on the device, and nobody has made their sums.
  bool from_lengths = false;
};

// Up to so many sequences whose lengths lie on the device each block may make the sums for itself, where few blocks
// will do: a thread a token up to so many tokens, tiles beyond. Three times the bytes a sequence, where more than the
// first two outputs are asked, make a scan of its own the quicker one sooner (H100).
constexpr int32_t MostWideSequences(bool first_two) { return first_two ? 4'096 : 3'072; }
inline constexpr int64_t kMostWideBinaryTokens = 66'000;

// One of kLinear, kBinary, kRows and kTile.
Kernel ChooseKernel(const LaunchPlan& plan, const BatchShape& shape);

}  // namespace nsa::metadata::kernels
