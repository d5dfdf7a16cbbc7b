#include "kernels/backend.h"

#include <sys/mman.h>

#include <cerrno>

#include "absl/strings/str_cat.h"

namespace nsa::metadata::kernels {

std::string_view BackendName(BackendKind kind) {
  switch (kind) {
    case BackendKind::kCuda:
      return "cuda";
    case BackendKind::kCpu:
      return "cpu";
    case BackendKind::kReference:
      return "reference";
  }
  return "unknown";
}

absl::StatusOr<HostBuffer> AllocatePageable(size_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("cannot map ", bytes, " bytes of memory, errno ", errno));
  }
  return HostBuffer(data, bytes, [](void* mapped, size_t size) { munmap(mapped, size); });
}

}  // namespace nsa::metadata::kernels
