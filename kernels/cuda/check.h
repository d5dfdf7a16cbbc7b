// CUDA errors as statuses.
#pragma once

#include <cuda_runtime.h>

#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace nsa::metadata::kernels::cuda {

// OK, or UNAVAILABLE (RESOURCE_EXHAUSTED for want of memory) naming the call, the error and where it was. Clears the
// error, as far as the device lets it.
inline absl::Status StatusOf(cudaError_t error, const char* call, const char* file, int line) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  const std::string message =
      absl::StrCat(call, ": ", cudaGetErrorName(error), ", ", cudaGetErrorString(error), " (", file, ":", line, ")");
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(message);
  return absl::UnavailableError(message);
}

}  // namespace nsa::metadata::kernels::cuda

// The status of a CUDA call.
#define NSA_CUDA_STATUS(call) ::nsa::metadata::kernels::cuda::StatusOf((call), #call, __FILE_NAME__, __LINE__)

// Returns from the function when a CUDA call fails.
#define NSA_RETURN_IF_CUDA_ERROR(call)                                                        \
  do {                                                                                        \
    if (absl::Status nsa_status = NSA_CUDA_STATUS(call); !nsa_status.ok()) return nsa_status; \
  } while (false)
