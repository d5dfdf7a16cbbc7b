#include "kernels/cuda/cuda_backend.h"

#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/allocator.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/handles.h"
#include "kernels/cuda/lane.h"
#include "kernels/cuda/launch.h"

namespace nsa::metadata::kernels {
namespace cuda {
namespace {

class CudaBackend final : public Backend {
 public:
  CudaBackend(const CudaOptions& options, std::string device) : options_(options), device_(std::move(device)) {}

  BackendKind kind() const override { return BackendKind::kCuda; }
  std::string device() const override { return device_; }
  absl::StatusOr<std::unique_ptr<Lane>> CreateLane(const LaneLimits& limits) override {
    return CudaLane::Create(options_, limits);
  }

  absl::StatusOr<HostBuffer> AllocateOutput(size_t bytes) override {
    NSA_RETURN_IF_CUDA_ERROR(cudaSetDevice(options_.device));
    void* memory = nullptr;
    NSA_RETURN_IF_CUDA_ERROR(
        options_.allocator->AllocatePinned(&memory, bytes, cudaHostAllocMapped | cudaHostAllocPortable));
    HostBuffer buffer(memory, bytes, [](void* pinned, size_t) { FreePinned()(pinned); });
    void* on_device = nullptr;
    NSA_RETURN_IF_CUDA_ERROR(cudaHostGetDevicePointer(&on_device, memory, 0));
    // Requests' pointers go to the kernels as they are.
    if (on_device != memory) return absl::UnavailableError("the device has another address for pinned memory");
    return buffer;
  }

 private:
  const CudaOptions options_;
  const std::string device_;
};

// "NVIDIA H100 80GB HBM3, compute 9.0, driver for CUDA 13.0, machine code for compute 9.0".
absl::StatusOr<std::string> Describe(int device) {
  cudaDeviceProp properties;
  NSA_RETURN_IF_CUDA_ERROR(cudaGetDeviceProperties(&properties, device));
  int driver = 0;
  NSA_RETURN_IF_CUDA_ERROR(cudaDriverGetVersion(&driver));
  RunningCode code;
  NSA_RETURN_IF_CUDA_ERROR(GetRunningCode(&code));
  return absl::StrCat(properties.name, ", compute ", properties.major, ".", properties.minor, ", driver for CUDA ",
                      driver / 1000, ".", driver % 1000 / 10, code.machine_code ? ", machine code" : ", PTX",
                      " for compute ", code.compiled_from / 10, ".", code.compiled_from % 10,
                      code.machine_code ? "" : " compiled by the driver");
}

// Expands `num_sequences` sequences of one token, alone or beside a request without any, and looks at what was written.
absl::Status TryKernel(CudaLane& lane, int64_t num_sequences, bool alone, OutputSet outputs, int32_t* out) {
  constexpr int32_t kLength = 7;
  const std::vector<int32_t> q(num_sequences, 1);
  const std::vector<int32_t> s(num_sequences, kLength);
  OutputPointers pointers = {};
  int32_t* next = out;
  outputs.ForEach([&](Output output) {
    pointers[static_cast<size_t>(output)] = next;
    next += OutputLength(output, num_sequences, num_sequences);
  });
  std::fill_n(out, num_sequences, 0);
  lane.batch().Clear();
  lane.batch().Add({.nsa_index_topk = 1, .outputs = outputs}, q, s, num_sequences, pointers);
  if (!alone) lane.batch().Add({.nsa_index_topk = 1, .outputs = {}}, {}, {}, 0, {});
  if (const absl::StatusOr<Kernel> ran = lane.Expand(); !ran.ok()) return ran.status();
  const int32_t* wrong = std::find_if(out, out + num_sequences, [](int32_t value) { return value != kLength; });
  if (wrong == out + num_sequences) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("a kernel wrote ", *wrong, " where ", kLength, " was due"));
}

// Launches every kernel once, in each size that its parameters come in, over lengths that the host has laid out and
// each way in which the device makes the sums: the first launch of one takes milliseconds.
absl::Status TryKernels(CudaBackend& backend, const CudaOptions& options) {
  constexpr int64_t kSizes[] = {1, 40, 64, 100, 192, 300, 512, 1024, 2048, 4097};
  constexpr int64_t kMost = 4097;
  absl::StatusOr<HostBuffer> output = backend.AllocateOutput(kNumOutputs * (kMost + 1) * sizeof(int32_t));
  if (!output.ok()) return output.status();
  for (KernelChoice choice : {KernelChoice::kLinear, KernelChoice::kBinary, KernelChoice::kRows, KernelChoice::kTile}) {
    absl::StatusOr<std::unique_ptr<CudaLane>> lane =
        CudaLane::Create({.device = options.device,
                          .plan = {.choice = choice, .input = options.plan.input},
                          .timeout = options.timeout,
                          .allocator = options.allocator},
                         {.max_sequences = kMost, .max_requests = 2});
    if (!lane.ok()) return lane.status();
    for (int64_t num_sequences : kSizes) {
      for (OutputSet outputs : {OutputSet{Output::kSeqlensExpanded}, OutputSet::All()}) {
        for (bool alone : {true, false}) {
          const absl::Status status =
              TryKernel(**lane, num_sequences, alone, outputs, reinterpret_cast<int32_t*>(output->data()));
          if (!status.ok()) return status;
        }
      }
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Backend>> Create(const CudaOptions& options) {
  if (DeviceLost()) return absl::UnavailableError("this process's CUDA device has failed before");
  int devices = 0;
  NSA_RETURN_IF_CUDA_ERROR(cudaGetDeviceCount(&devices));
  if (options.device < 0 || options.device >= devices) {
    return absl::UnavailableError(
        absl::StrCat("there is no CUDA device ", options.device, "; this machine has ", devices));
  }
  NSA_RETURN_IF_CUDA_ERROR(cudaSetDevice(options.device));
  absl::StatusOr<std::string> device = Describe(options.device);
  if (!device.ok()) return device.status();
  static Allocator runtime;
  CudaOptions able = options;
  if (able.allocator == nullptr) able.allocator = &runtime;
  int driver = 0;
  NSA_RETURN_IF_CUDA_ERROR(cudaDriverGetVersion(&driver));
  if (driver < 12010) able.plan.input = Input::kCopied;  // parameters of more than 4 KiB came with CUDA 12.1
  auto backend = std::make_unique<CudaBackend>(able, *std::move(device));
  if (absl::Status status = TryKernels(*backend, able); !status.ok()) return status;
  return backend;
}

}  // namespace
}  // namespace cuda

const char* CudaVersion() {
  static const std::string version = absl::StrCat(CUDART_VERSION / 1000, ".", CUDART_VERSION % 1000 / 10);
  return version.c_str();
}

absl::StatusOr<std::unique_ptr<Backend>> CreateCudaBackend(const CudaOptions& options) { return cuda::Create(options); }

}  // namespace nsa::metadata::kernels
