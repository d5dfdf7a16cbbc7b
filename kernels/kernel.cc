#include "kernels/kernel.h"

namespace nsa::metadata::kernels {

std::string_view KernelName(Kernel kernel) {
  switch (kernel) {
    case Kernel::kReference:
      return "reference";
    case Kernel::kCpu:
      return "cpu";
    case Kernel::kLinear:
      return "linear";
    case Kernel::kBinary:
      return "binary";
    case Kernel::kRows:
      return "rows";
    case Kernel::kTile:
      return "tile";
  }
  return "unknown";
}

}  // namespace nsa::metadata::kernels
