#include <cuda_runtime.h>

#include <algorithm>
#include <memory>
#include <stdexcept>
#include <vector>

#include "client/python/local.h"
#include "kernels/cuda/draft_extend_metadata.h"
#include "kernels/cuda/launch.h"

namespace nsa::metadata::local {
namespace {

using kernels::Output;
using kernels::cuda::DraftExtendMetadata;

// More sequences or tokens the launchers don't take.
constexpr int64_t kMost = int64_t{1} << 29;

void Check(cudaError_t error, const char* call) {
  if (error == cudaSuccess) return;
  cudaGetLastError();
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(error) + ", " + cudaGetErrorString(error));
}
#define CHECK_CUDA(call) Check((call), #call)

// The thread's device, for as long as it lives; other code in this process has its own idea of it.
class OnDevice {
 public:
  explicit OnDevice(int device) {
    CHECK_CUDA(cudaGetDevice(&before_));
    if (before_ == device) return;
    CHECK_CUDA(cudaSetDevice(device));
    changed_ = true;
  }
  ~OnDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

struct FreeDevice {
  void operator()(void* memory) const { cudaFree(memory); }
};
struct FreePinned {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};

// What a thread's expansions on one device need. Each is over before the next begins.
class Workspace {
 public:
  // Of at least `bytes`. Where that is no more than the sum, the host's memory: the kernel writes it there itself.
  void* Get(size_t bytes) {
    if (total_ == nullptr) {
      void* pinned = nullptr;
      CHECK_CUDA(cudaHostAlloc(&pinned, sizeof(int64_t), cudaHostAllocMapped));
      total_.reset(pinned);
      CHECK_CUDA(cudaHostGetDevicePointer(&mapped_, pinned, 0));
    }
    if (bytes <= sizeof(int64_t)) return mapped_;
    if (bytes > scratch_bytes_) {
      scratch_.reset();
      scratch_bytes_ = 0;
      void* memory = nullptr;
      CHECK_CUDA(cudaMalloc(&memory, bytes));
      scratch_.reset(memory);
      scratch_bytes_ = bytes;
    }
    return scratch_.get();
  }
  // What an expansion with `workspace` has left there. Waits for the stream.
  int64_t Total(const void* workspace, cudaStream_t stream) {
    if (workspace != mapped_) {
      CHECK_CUDA(cudaMemcpyAsync(total_.get(), workspace, sizeof(int64_t), cudaMemcpyDeviceToHost, stream));
    }
    CHECK_CUDA(cudaStreamSynchronize(stream));
    return *static_cast<const volatile int64_t*>(total_.get());
  }

 private:
  std::unique_ptr<void, FreePinned> total_;
  void* mapped_ = nullptr;
  std::unique_ptr<void, FreeDevice> scratch_;
  size_t scratch_bytes_ = 0;
};

Workspace& WorkspaceOf(int device) {
  thread_local std::vector<std::unique_ptr<Workspace>> workspaces;
  if (workspaces.size() <= static_cast<size_t>(device)) workspaces.resize(static_cast<size_t>(device) + 1);
  std::unique_ptr<Workspace>& mine = workspaces[static_cast<size_t>(device)];
  if (mine == nullptr) mine = std::make_unique<Workspace>();
  return *mine;
}

DraftExtendMetadata MetadataOf(const Job& job) {
  DraftExtendMetadata metadata;
  metadata.extend_seq_lens = job.extend_seq_lens;
  metadata.seq_lens = job.seq_lens;
  metadata.num_sequences = job.num_sequences;
  metadata.nsa_index_topk = job.spec.nsa_index_topk;
  metadata.mode = job.spec.mode;
  metadata.out = job.out;
  metadata.capacity = std::min(job.capacity, kMost);
  return metadata;
}

void CheckCount(int64_t num_sequences) {
  if (num_sequences <= kMost) return;
  throw std::invalid_argument("the lengths of " + std::to_string(num_sequences) + " sequences, want at most " +
                              std::to_string(kMost));
}

}  // namespace

bool HasCuda() { return true; }

Device LookAtDevice(int device) {
  const OnDevice on(device);
  cudaDeviceProp properties;
  CHECK_CUDA(cudaGetDeviceProperties(&properties, device));
  Device found;
  found.name = properties.name;
  int compiled_from = 0;
  if (const cudaError_t error = kernels::cuda::CompiledFrom(&compiled_from); error != cudaSuccess) {
    cudaGetLastError();
    found.unusable = cudaGetErrorString(error);
    return found;
  }
  found.tier = compiled_from == 10 * properties.major + properties.minor ? "machine code" : "PTX";
  return found;
}

std::optional<int64_t> ExpandOnDevice(const Job& job, std::optional<kernels::Kernel> kernel, int device,
                                      uintptr_t stream_handle, bool wait) {
  CheckCount(job.num_sequences);
  const OnDevice on(device);
  auto* const stream = reinterpret_cast<cudaStream_t>(stream_handle);
  DraftExtendMetadata metadata = MetadataOf(job);
  const kernels::Kernel chosen = kernel.has_value() ? *kernel : kernels::cuda::ChooseKernel(metadata);
  const size_t bytes = kernels::cuda::DraftExtendWorkspaceBytes(job.num_sequences);
  if (!wait) {
    // Memory in the stream's own order: it is there until the kernels are over, in a graph too.
    CHECK_CUDA(cudaMallocAsync(&metadata.workspace, bytes, stream));
    const cudaError_t launched = kernels::cuda::LaunchDraftExtendMetadata(metadata, chosen, stream);
    CHECK_CUDA(cudaFreeAsync(metadata.workspace, stream));
    Check(launched, "LaunchDraftExtendMetadata");
    return std::nullopt;
  }
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  CHECK_CUDA(cudaStreamIsCapturing(stream, &capturing));
  if (capturing != cudaStreamCaptureStatusNone) {
    throw std::runtime_error("the stream is being captured, where nothing can be waited for: want synchronize=False");
  }
  Workspace& workspace = WorkspaceOf(device);
  metadata.workspace = workspace.Get(bytes);
  CHECK_CUDA(kernels::cuda::LaunchDraftExtendMetadata(metadata, chosen, stream));
  return workspace.Total(metadata.workspace, stream);
}

int64_t ExpandOnHostForDevice(const Job& job, HostBackend backend, int device, uintptr_t stream_handle) {
  const OnDevice on(device);
  auto* const stream = reinterpret_cast<cudaStream_t>(stream_handle);
  std::vector<int32_t> q(static_cast<size_t>(job.num_sequences));
  std::vector<int32_t> s(static_cast<size_t>(job.num_sequences));
  CHECK_CUDA(
      cudaMemcpyAsync(q.data(), job.extend_seq_lens, q.size() * sizeof(int32_t), cudaMemcpyDeviceToHost, stream));
  CHECK_CUDA(cudaMemcpyAsync(s.data(), job.seq_lens, s.size() * sizeof(int32_t), cudaMemcpyDeviceToHost, stream));
  CHECK_CUDA(cudaStreamSynchronize(stream));
  // As on the device.
  for (int32_t& length : q) length = std::max(length, 0);
  for (int32_t& length : s) length = std::max(length, 0);
  int64_t total_tokens = 0;
  for (int32_t length : q) total_tokens += length;
  Job on_host = job;
  on_host.extend_seq_lens = q.data();
  on_host.seq_lens = s.data();
  on_host.capacity = total_tokens;
  std::vector<std::vector<int32_t>> values(kernels::kNumOutputs);
  job.spec.outputs.ForEach([&](Output output) {
    const auto index = static_cast<size_t>(output);
    values[index].resize(static_cast<size_t>(kernels::OutputLength(output, job.num_sequences, total_tokens)));
    on_host.out[index] = values[index].data();
  });
  ExpandOnHost(on_host, backend);
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
