#include "kernels/host_backend.h"

#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/cpu.h"
#include "kernels/reference.h"

namespace nsa::metadata::kernels {

std::unique_ptr<Backend> CreateCpuBackend() {
  return std::make_unique<HostBackend>(BackendKind::kCpu,
                                       absl::StrCat("CPU, ", std::thread::hardware_concurrency(), " cores"),
                                       Kernel::kCpu, &ExpandRequestOnCpu);
}

std::unique_ptr<Backend> CreateReferenceBackend() {
  return std::make_unique<HostBackend>(BackendKind::kReference, "reference", Kernel::kReference,
                                       &ExpandRequestByReference);
}

}  // namespace nsa::metadata::kernels
