#include "kernels/launch_plan.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace nsa::metadata::kernels {
namespace {

// What was quickest, to the device on an NVIDIA H200, to the host on an H100 80GB (tests/gpu/bench.sh prints these
// anew), smoothed by hand where two were within noise of each other. A line for 1, 4, 16, ... 65,536 sequences, a
// letter for 1, 4, 16, ... 16,384 tokens a sequence: b(inary), r(ows), t(ile). A shape takes the nearest entry. Linear
// search never was the quickest by more than noise.
using Table = std::array<std::string_view, 9>;

constexpr Table kToDeviceFirstTwo = {
    "bbbbbbbb", "rrrbbbbb", "rrrbbbbt", "rrrrbbtt", "rrrrbttt", "rrrrtttt", "rrrrtttt", "bbtttttt", "bbtttttt",
};
constexpr Table kToDeviceAll = {
    "bbbbbbbb", "rrrbbbbb", "rrrbbbbt", "rrrbbbtt", "rrrbbttt", "rrrbtttt", "rrrttttt", "bbtttttt", "bbtttttt",
};
constexpr Table kToHostFirstTwo = {
    "bbbbbbbb", "rrrrbbbb", "rrrrbbbb", "rrrrbbbb", "bbbbbbbb", "bbbbbbbb", "bbbbbbbb", "bbbbbbbb", "bbbbbbbb",
};
constexpr Table kToHostAll = {
    "bbbbbbbb", "rrbbbbbb", "rrrbbbbb", "rrrrbbbb", "bbbbbbbb", "bbbbbbbb", "bbbbbbbb", "bbbbbbbb", "bbbbbbbb",
};

// Where the nearest entry is not binary's, which is never far from the quickest, a shape between two takes the lower
// one: of few tokens whichever it is, of some where it is rows'. So much above an entry is not between two.
constexpr int64_t kFewTokens = 200'000;
constexpr int64_t kSomeTokens = 300'000;
constexpr double kNearly = 0.1;

// Where each block makes the sums for itself, few will do. Of up to this many sequences they cost little.
constexpr int64_t kMostCheapSequences = 1'024;
constexpr int64_t kMostBinaryTokens = 1 << 17;

// Which of 1, 4, 16, ... a value is, a fraction where it lies between two.
double Place(double value) { return std::log2(std::max(value, 1.0)) / 2; }

char At(const Table& table, long line, long letter) {
  const std::string_view letters = table[std::min(static_cast<size_t>(line), table.size() - 1)];
  return letters[std::min(static_cast<size_t>(letter), letters.size() - 1)];
}

Kernel Quickest(const BatchShape& shape) {
  if (shape.from_lengths && shape.num_sequences > kMostCheapSequences &&
      shape.num_sequences <= MostWideSequences(shape.first_two)) {
    return shape.total_tokens <= kMostWideBinaryTokens ? Kernel::kBinary : Kernel::kTile;
  }
  const Table& table = shape.to_host     ? shape.first_two ? kToHostFirstTwo : kToHostAll
                       : shape.first_two ? kToDeviceFirstTwo
                                         : kToDeviceAll;
  const double mean =
      static_cast<double>(shape.total_tokens) / static_cast<double>(std::max<int64_t>(shape.num_sequences, 1));
  const double line = Place(static_cast<double>(shape.num_sequences));
  const double letter = Place(mean);
  char quickest = At(table, std::lround(line), std::lround(letter));
  if (quickest != 'b' && shape.total_tokens < kSomeTokens) {
    const char lower = At(table, static_cast<long>(line + kNearly), static_cast<long>(letter + kNearly));
    if (lower == 'r' || shape.total_tokens < kFewTokens) quickest = lower;
  }
  if (quickest == 'b' && shape.from_lengths && shape.num_sequences <= kMostCheapSequences &&
      shape.total_tokens > kMostBinaryTokens) {
    quickest = 't';
  }
  switch (quickest) {
    case 'r':
      return Kernel::kRows;
    case 't':
      return Kernel::kTile;
    default:
      return Kernel::kBinary;
  }
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

Kernel ChooseKernel(const LaunchPlan& plan, const BatchShape& shape) {
  switch (plan.choice) {
    case KernelChoice::kAdaptive:
      return Quickest(shape);
    case KernelChoice::kThreshold:
      return shape.num_sequences <= plan.threshold ? Kernel::kLinear : Kernel::kBinary;
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
