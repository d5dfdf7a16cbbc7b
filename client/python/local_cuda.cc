#include <cuda_runtime.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "client/python/local.h"
#include "kernels/cuda/draft_extend_metadata.h"
#include "kernels/cuda/fill_workspace.h"
#include "kernels/cuda/launch.h"
#include "kernels/measure.h"

namespace nsa::metadata::local {
namespace {

using kernels::Output;
using kernels::cuda::BesideCaptures;
using kernels::cuda::DraftExtendMetadata;
using kernels::cuda::FillWorkspace;

void Check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}
#define CHECK_CUDA(call) Check((call), #call)

// Whether the device was used in this process: one that wasn't must not get a context by being restored.
bool IsInUse(int device) {
  using GetState = int (*)(int device, unsigned* flags, int* active);
  static const GetState get_state = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &function, 12000, cudaEnableDefault, &found);
#else
    cudaGetDriverEntryPoint("cuDevicePrimaryCtxGetState", &function, cudaEnableDefault, &found);
#endif
    return found == cudaDriverEntryPointSuccess ? reinterpret_cast<GetState>(function) : nullptr;
  }();
  unsigned flags = 0;
  int active = 0;
  return get_state != nullptr && get_state(device, &flags, &active) == 0 && active != 0;
}

// The thread's device, for as long as it lives; other code in this process has its own idea of it.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    CHECK_CUDA(cudaGetDevice(&before_));
    if (before_ == device) return;
    restore_ = IsInUse(before_);
    CHECK_CUDA(cudaSetDevice(device));
  }
  ~OnDevice() {
    if (restore_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool restore_ = false;
};

// What a thread's expansions on a device need.
FillWorkspace& WorkspaceOf(int device) {
  thread_local std::vector<std::unique_ptr<FillWorkspace>> workspaces;
  if (workspaces.size() <= static_cast<size_t>(device)) workspaces.resize(static_cast<size_t>(device) + 1);
  std::unique_ptr<FillWorkspace>& mine = workspaces[static_cast<size_t>(device)];
  if (mine == nullptr) mine = std::make_unique<FillWorkspace>();
  return *mine;
}

// The scratch memory of expansions that nobody waits for: a pool a device, which keeps what it has between one
// expansion and the next.
cudaMemPool_t PoolOf(int device) {
  static std::mutex mutex;
  static std::vector<cudaMemPool_t>& all = *new std::vector<cudaMemPool_t>;
  const std::lock_guard lock(mutex);
  if (all.size() <= static_cast<size_t>(device)) all.resize(static_cast<size_t>(device) + 1);
  cudaMemPool_t& mine = all[static_cast<size_t>(device)];
  if (mine == nullptr) {
    const BesideCaptures beside;
    cudaMemPoolProps properties = {};
    properties.allocType = cudaMemAllocationTypePinned;
    properties.location = {cudaMemLocationTypeDevice, device};
    CHECK_CUDA(cudaMemPoolCreate(&mine, &properties));
    uint64_t all_of_it = UINT64_MAX;
    CHECK_CUDA(cudaMemPoolSetAttribute(mine, cudaMemPoolAttrReleaseThreshold, &all_of_it));
  }
  return mine;
}

DraftExtendMetadata MetadataOf(const Job& job) {
  DraftExtendMetadata metadata;
  metadata.extend_seq_lens = job.extend_seq_lens;
  metadata.seq_lens = job.seq_lens;
  metadata.num_sequences = job.num_sequences;
  metadata.nsa_index_topk = job.spec.nsa_index_topk;
  metadata.mode = job.spec.mode;
  metadata.out = job.out;
  metadata.capacity = std::min(job.capacity, kMostOnDevice);
  return metadata;
}

void CheckCount(int64_t num_sequences) {
  if (num_sequences <= kMostOnDevice) return;
  throw std::invalid_argument("the lengths of " + std::to_string(num_sequences) + " sequences, want at most " +
                              std::to_string(kMostOnDevice));
}

void CheckNotCapturing(cudaStream_t stream, const char* want) {
  if (stream == nullptr) return;  // can't be captured
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  CHECK_CUDA(cudaStreamIsCapturing(stream, &capturing));
  if (capturing == cudaStreamCaptureStatusNone) return;
  throw std::runtime_error(std::string("the stream is being captured, where nothing can be waited for: ") + want);
}

}  // namespace

bool HasCuda() { return true; }

Device LookAtDevice(int device) {
  const OnDevice on(device);
  cudaDeviceProp properties;
  CHECK_CUDA(cudaGetDeviceProperties(&properties, device));
  Device found;
  found.name = properties.name;
  kernels::cuda::RunningCode code;
  if (const cudaError_t error = kernels::cuda::GetRunningCode(&code); error != cudaSuccess) {
    cudaGetLastError();
    found.unusable = cudaGetErrorString(error);
    return found;
  }
  found.tier = code.machine_code ? "machine code" : "PTX";
  return found;
}

std::optional<int64_t> ExpandOnDevice(const Job& job, std::optional<kernels::Kernel> kernel, int device,
                                      uintptr_t stream_handle, bool wait) {
  CheckCount(job.num_sequences);
  const OnDevice on(device);
  auto* const stream = reinterpret_cast<cudaStream_t>(stream_handle);
  DraftExtendMetadata metadata = MetadataOf(job);
  const kernels::Kernel chosen = kernel.has_value() ? *kernel : kernels::cuda::ChooseKernel(metadata);
  if (!wait) {
    const size_t bytes = kernels::cuda::DraftExtendWorkspaceBytes(job.num_sequences);
    // Memory in the stream's own order: it is there until the kernels are over, in a graph too.
    if (bytes > 0) CHECK_CUDA(cudaMallocFromPoolAsync(&metadata.workspace, bytes, PoolOf(device), stream));
    const cudaError_t launched = kernels::cuda::LaunchDraftExtendMetadata(metadata, chosen, stream);
    if (bytes > 0) CHECK_CUDA(cudaFreeAsync(metadata.workspace, stream));
    Check(launched, "LaunchDraftExtendMetadata");
    return std::nullopt;
  }
  CheckNotCapturing(stream, "want synchronize=False");
  int64_t total_tokens = 0;
  Check(kernels::cuda::FillDraftExtendMetadata(metadata, chosen, stream, WorkspaceOf(device), &total_tokens),
        "FillDraftExtendMetadata");
  return total_tokens;
}

int64_t ExpandOnHostForDevice(const Job& job, HostBackend backend, int device, uintptr_t stream_handle) {
  CheckCount(job.num_sequences);
  const OnDevice on(device);
  auto* const stream = reinterpret_cast<cudaStream_t>(stream_handle);
  CheckNotCapturing(stream, "the device's own kernels");
  std::vector<int32_t> q(static_cast<size_t>(job.num_sequences));
  std::vector<int32_t> s(static_cast<size_t>(job.num_sequences));
  CHECK_CUDA(
      cudaMemcpyAsync(q.data(), job.extend_seq_lens, q.size() * sizeof(int32_t), cudaMemcpyDeviceToHost, stream));
  CHECK_CUDA(cudaMemcpyAsync(s.data(), job.seq_lens, s.size() * sizeof(int32_t), cudaMemcpyDeviceToHost, stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  // As on the device.
  for (int32_t& length : q) length = std::max(length, 0);
  for (int32_t& length : s) length = std::max(length, 0);
  const int64_t total_tokens = kernels::Sum(q);
  if (total_tokens > kMostOnDevice) {
    throw std::invalid_argument("the sum of extend_seq_lens is " + std::to_string(total_tokens) + ", want at most " +
                                std::to_string(kMostOnDevice));
  }
  Job on_host = job;
  on_host.extend_seq_lens = q.data();
  on_host.seq_lens = s.data();
  std::vector<std::vector<int32_t>> values(kernels::kNumOutputs);
  job.spec.outputs.ForEach([&](Output output) {
    const auto index = static_cast<size_t>(output);
    values[index].resize(static_cast<size_t>(kernels::OutputLength(output, job.num_sequences, total_tokens)));
    on_host.out[index] = values[index].data();
  });
  ExpandUnchecked(on_host, total_tokens, backend);
  job.spec.outputs.ForEach([&](Output output) {
    const auto index = static_cast<size_t>(output);
    const int64_t room = kernels::OutputLength(output, job.num_sequences, std::min(total_tokens, job.capacity));
    CHECK_CUDA(cudaMemcpyAsync(job.out[index], values[index].data(), static_cast<size_t>(room) * sizeof(int32_t),
                               cudaMemcpyHostToDevice, stream));
  });
  CHECK_CUDA(cudaStreamSynchronize(stream));
  return total_tokens;
}

}  // namespace nsa::metadata::local
