#include <cuda_runtime.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "client/python/local.h"
#include "kernels/cuda/draft_extend_metadata.h"
#include "kernels/cuda/launch.h"
#include "kernels/measure.h"

namespace nsa::metadata::local {
namespace {

using kernels::Output;
using kernels::cuda::DoneFlags;
using kernels::cuda::DraftExtendMetadata;

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

// Allocates and frees while another thread captures a graph, which else forbids it to all threads.
class BesideCaptures {
 public:
  BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

struct FreeDevice {
  void operator()(void* memory) const {
    const BesideCaptures beside;
    cudaFree(memory);
  }
};
struct FreePinned {
  void operator()(void* memory) const {
    const BesideCaptures beside;
    cudaFreeHost(memory);
  }
};

// What a thread's expansions on one device need. Each is over before the next begins.
class Workspace {
 public:
  // Of at least `bytes`. Where that is no more than the sum, the host's memory: the kernel writes it there itself.
  void* Get(size_t bytes) {
    if (shared_ == nullptr) {
      const BesideCaptures beside;
      void* pinned = nullptr;
      CHECK_CUDA(cudaHostAlloc(&pinned, sizeof(Shared), cudaHostAllocMapped));
      std::memset(pinned, 0, sizeof(Shared));
      shared_.reset(pinned);
      void* mapped = nullptr;
      CHECK_CUDA(cudaHostGetDevicePointer(&mapped, pinned, 0));
      mapped_ = static_cast<Shared*>(mapped);
    }
    if (bytes <= sizeof(int64_t)) return &mapped_->total;
    if (bytes > scratch_bytes_) {
      const BesideCaptures beside;
      scratch_.reset();
      scratch_bytes_ = 0;
      void* memory = nullptr;
      CHECK_CUDA(cudaMalloc(&memory, bytes));
      scratch_.reset(memory);
      scratch_bytes_ = bytes;
    }
    return scratch_.get();
  }
  // For an expansion with `workspace`, after Get. None where there would be too many to look at.
  DoneFlags FlagsFor(const void* workspace, int64_t blocks) {
    if (workspace != &mapped_->total || blocks > kMostFlags) return {};
    return {.flags = mapped_->flags, .value = ++launches_};
  }
  // What the expansion has left in `workspace`, once all it wrote is there.
  int64_t Total(const void* workspace, const DoneFlags& done, int64_t blocks, cudaStream_t stream) {
    auto* const shared = static_cast<Shared*>(shared_.get());
    if (done.flags != nullptr && AreSet(shared->flags, done.value, blocks)) return shared->total;
    if (workspace != &mapped_->total) {
      CHECK_CUDA(cudaMemcpyAsync(&shared->total, workspace, sizeof(int64_t), cudaMemcpyDeviceToHost, stream));
    }
    CHECK_CUDA(cudaStreamSynchronize(stream));
    return shared->total;
  }

 private:
  static constexpr int64_t kMostFlags = 1024;
  // The host's memory, which the device writes.
  struct Shared {
    int64_t total;
    uint64_t flags[kMostFlags];
  };

  // Looks for a while. Who has to wait longer asks the stream, which says of errors, and may let the processor go.
  static bool AreSet(uint64_t* flags, uint64_t value, int64_t blocks) {
    constexpr std::chrono::microseconds kWhile(50);
    constexpr int64_t kLooksBetweenClocks = 1 << 10;
    std::chrono::steady_clock::time_point end;
    int64_t looks = 0;
    for (int64_t block = 0; block < blocks; ++block) {
      const std::atomic_ref<uint64_t> flag(flags[block]);
      while (flag.load(std::memory_order_acquire) != value) {
        if (looks++ % kLooksBetweenClocks != 0) continue;
        const auto now = std::chrono::steady_clock::now();
        if (looks == 1) {
          end = now + kWhile;
        } else if (now >= end) {
          return false;
        }
      }
    }
    return true;
  }

  std::unique_ptr<void, FreePinned> shared_;
  Shared* mapped_ = nullptr;
  uint64_t launches_ = 0;
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

// Where expansions that nobody waits for leave their sum: one place a device, which nobody reads.
void* UnreadSumOf(int device) {
  static std::mutex mutex;
  static std::vector<void*>& all = *new std::vector<void*>;
  const std::lock_guard lock(mutex);
  if (all.size() <= static_cast<size_t>(device)) all.resize(static_cast<size_t>(device) + 1);
  void*& mine = all[static_cast<size_t>(device)];
  if (mine == nullptr) {
    const BesideCaptures beside;
    CHECK_CUDA(cudaMalloc(&mine, sizeof(int64_t)));
  }
  return mine;
}

// Their scratch memory: a pool a device, which keeps what it has between one expansion and the next.
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
  if (!wait && bytes <= sizeof(int64_t)) {
    metadata.workspace = UnreadSumOf(device);
    CHECK_CUDA(kernels::cuda::LaunchDraftExtendMetadata(metadata, chosen, stream));
    return std::nullopt;
  }
  if (!wait) {
    // Memory in the stream's own order: it is there until the kernels are over, in a graph too.
    CHECK_CUDA(cudaMallocFromPoolAsync(&metadata.workspace, bytes, PoolOf(device), stream));
    const cudaError_t launched = kernels::cuda::LaunchDraftExtendMetadata(metadata, chosen, stream);
    CHECK_CUDA(cudaFreeAsync(metadata.workspace, stream));
    Check(launched, "LaunchDraftExtendMetadata");
    return std::nullopt;
  }
  CheckNotCapturing(stream, "want synchronize=False");
  Workspace& workspace = WorkspaceOf(device);
  metadata.workspace = workspace.Get(bytes);
  const int64_t blocks = kernels::cuda::NumBlocks(chosen, metadata.num_sequences, metadata.capacity);
  const DoneFlags done = workspace.FlagsFor(metadata.workspace, blocks);
  CHECK_CUDA(kernels::cuda::LaunchDraftExtendMetadata(metadata, chosen, stream, done));
  return workspace.Total(metadata.workspace, done, blocks, stream);
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
