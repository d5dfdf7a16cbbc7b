#include "kernels/cuda/lane.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cpu.h"
#include "kernels/cuda/allocator.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/lay_out.h"

namespace nsa::metadata::kernels::cuda {
namespace {

// A host that looks at flags sees the end of a kernel 1 to 2 us sooner than one that asks the stream. Of more blocks
// than this nobody would notice.
constexpr int64_t kMostDoneFlags = 1024;

// The runtime's device is a thread's own, and any thread may run a lane.
cudaError_t UseDevice(int device) {
  int current = -1;
  if (cudaGetDevice(&current) == cudaSuccess && current == device) return cudaSuccess;
  return cudaSetDevice(device);
}

// The most that a lane's batch takes.
size_t MostBytes(const LaneLimits& limits) {
  BatchSize size;
  size.num_sequences = static_cast<int32_t>(limits.max_sequences);
  size.num_requests = static_cast<int32_t>(limits.max_requests);
  return std::max(BatchLayout(size).bytes, size_t{1});
}

}  // namespace

CudaLane::CudaLane(const CudaOptions& options, const LaneLimits& limits)
    : options_(options),
      extend_seq_lens_(limits.max_sequences),
      seq_lens_(limits.max_sequences),
      batch_(extend_seq_lens_, seq_lens_, limits.max_requests) {}

absl::StatusOr<std::unique_ptr<CudaLane>> CudaLane::Create(const CudaOptions& options, const LaneLimits& limits) {
  std::unique_ptr<CudaLane> lane(new CudaLane(options, limits));
  NSA_RETURN_IF_CUDA_ERROR(UseDevice(options.device));
  cudaStream_t stream = nullptr;
  NSA_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  lane->stream_.reset(stream);
  Allocator& allocator = *options.allocator;
  void* memory = nullptr;
  NSA_RETURN_IF_CUDA_ERROR(allocator.AllocatePinned(&memory, MostBytes(limits), cudaHostAllocDefault));
  lane->pinned_.reset(memory);
  NSA_RETURN_IF_CUDA_ERROR(allocator.AllocateDevice(&memory, MostBytes(limits)));
  lane->on_device_.reset(memory);
  NSA_RETURN_IF_CUDA_ERROR(allocator.AllocatePinned(&memory, kMostDoneFlags * sizeof(uint64_t), cudaHostAllocMapped));
  memset(memory, 0, kMostDoneFlags * sizeof(uint64_t));
  lane->done_.reset(memory);
  return lane;
}

cudaError_t CudaLane::Launch(Kernel kernel, const DoneFlags& done) {
  const size_t bytes = BatchLayout(inline_.size).bytes;
  if (bytes <= kMostInlineBytes && options_.plan.input != Input::kCopied) {
    LayOut(batch_, inline_.size, inline_.data);
    return LaunchInline(kernel, inline_, done, stream_.get());
  }
  LayOut(batch_, inline_.size, static_cast<unsigned char*>(pinned_.get()));
  const cudaError_t error =
      cudaMemcpyAsync(on_device_.get(), pinned_.get(), bytes, cudaMemcpyHostToDevice, stream_.get());
  if (error != cudaSuccess) return error;
  return LaunchStaged(kernel, inline_.size, on_device_.get(), done, stream_.get());
}

absl::StatusOr<Kernel> CudaLane::Expand() {
  if (batch_.total_tokens() < options_.cpu_below_tokens) {
    ExpandOnCpu(batch_);
    return Kernel::kCpu;
  }
  if (DeviceLost()) return absl::Status(device_failure, "the device has failed before");
  absl::StatusOr<Kernel> kernel = ExpandOnDevice();
  absl::StatusCode none = absl::StatusCode::kOk;
  if (!kernel.ok()) device_failure.compare_exchange_strong(none, kernel.status().code());
  return kernel;
}

absl::StatusOr<Kernel> CudaLane::ExpandOnDevice() {
  NSA_RETURN_IF_CUDA_ERROR(UseDevice(options_.device));
  const absl::StatusOr<BatchSize> size = SizeOf(batch_);
  if (!size.ok()) return size.status();
  inline_.size = *size;
  const Kernel kernel = ChooseKernel(options_.plan, {.num_sequences = size->num_sequences,
                                                     .total_tokens = size->num_tokens,
                                                     .first_two = size->first_two,
                                                     .to_host = true});
  const int64_t blocks = NumBlocks(kernel, size->num_sequences, size->num_tokens);
  DoneFlags done;
  if (blocks <= kMostDoneFlags) done = {.flags = static_cast<uint64_t*>(done_.get()), .value = ++launches_};
  NSA_RETURN_IF_CUDA_ERROR(Launch(kernel, done));
  if (absl::Status status = AwaitDone(done.flags == nullptr ? 0 : blocks); !status.ok()) return status;
  return kernel;
}

absl::Status CudaLane::AwaitDone(int64_t blocks) const {
  // An error that ends the kernel leaves its flags as they are.
  constexpr uint64_t kLooksBetweenQueries = 1 << 14;
  const auto deadline = std::chrono::steady_clock::now() + options_.timeout;
  auto* const flags = static_cast<uint64_t*>(done_.get());
  for (int64_t block = 0; block < blocks; ++block) {
    const std::atomic_ref<uint64_t> flag(flags[block]);
    for (uint64_t looks = 1; flag.load(std::memory_order_acquire) != launches_; ++looks) {
      if (looks % kLooksBetweenQueries != 0) continue;
      const absl::StatusOr<bool> done = Done(deadline);
      if (!done.ok()) return done.status();
      if (*done) break;  // its flags are set
    }
  }
  if (blocks > 0) return absl::OkStatus();
  // cudaStreamSynchronize would wait for a kernel that hangs.
  for (;;) {
    const absl::StatusOr<bool> done = Done(deadline);
    if (!done.ok()) return done.status();
    if (*done) return absl::OkStatus();
  }
}

absl::StatusOr<bool> CudaLane::Done(std::chrono::steady_clock::time_point deadline) const {
  const cudaError_t error = cudaStreamQuery(stream_.get());
  if (error != cudaErrorNotReady) {
    if (error != cudaSuccess) return StatusOf(error, "a kernel", __FILE_NAME__, __LINE__);
    return true;
  }
  cudaGetLastError();  // not ready would else be the thread's last error
  if (std::chrono::steady_clock::now() < deadline) return false;
  return absl::DeadlineExceededError(
      absl::StrCat("a batch was on the device for more than ",
                   std::chrono::duration_cast<std::chrono::milliseconds>(options_.timeout).count(), " ms"));
}

}  // namespace nsa::metadata::kernels::cuda
