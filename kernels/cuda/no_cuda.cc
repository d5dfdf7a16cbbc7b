// What stands for the CUDA backend in a build without nvcc.

#include "kernels/cuda/cuda_backend.h"

namespace nsa::metadata::kernels {

const char* CudaVersion() { return "none"; }

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaOptions&) {
  return absl::UnimplementedError("this build has no CUDA");
}

}  // namespace nsa::metadata::kernels
