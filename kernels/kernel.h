// The code that computes batches, by name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace nsa::metadata::kernels {

// A backend has one or more.
enum class Kernel : uint8_t { kReference, kCpu, kLinear, kBinary, kRows, kTile };
inline constexpr size_t kNumKernels = 6;

// "reference", "cpu", "linear", "binary", "rows" or "tile".
std::string_view KernelName(Kernel kernel);

}  // namespace nsa::metadata::kernels
