#include "kernels/cuda/lane.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/cpu.h"
#include "kernels/cuda/allocator.h"
#include "kernels/cuda/check.h"
#include "kernels/cuda/device_lengths.h"
#include "kernels/cuda/lay_out.h"

namespace nsa::metadata::kernels::cuda {
namespace {

// The runtime's device is a thread's own, and any thread may run a lane.
cudaError_t UseDevice(int device) {
  int current = -1;
  if (cudaGetDevice(&current) == cudaSuccess && current == device) return cudaSuccess;
  return cudaSetDevice(device);
}

// The most that the layout of a lane's batch takes, more than its lengths alone.
size_t MostBytes(const LaneLimits& limits) {
  BatchSize size;
  size.num_sequences = static_cast<int32_t>(limits.max_sequences);
  size.num_requests = static_cast<int32_t>(limits.max_requests);
  return std::max(BatchLayout(size).bytes, size_t{1});
}

// What so many sequences' lengths take.
size_t LengthsBytes(int64_t num_sequences) { return 2 * static_cast<size_t>(num_sequences) * sizeof(int32_t); }

// What a batch's lengths take, and the sums that the device makes of them.
size_t MostBytesFromLengths(const LaneLimits& limits) {
  return LengthsBytes(limits.max_sequences) + SumsWorkspaceBytes(static_cast<int32_t>(limits.max_sequences));
}

}  // namespace

CudaLane::CudaLane(const CudaOptions& options, const LaneLimits& limits)
    : options_(options), batch_(limits.max_sequences, limits.max_requests) {}

absl::StatusOr<std::unique_ptr<CudaLane>> CudaLane::Create(const CudaOptions& options, const LaneLimits& limits) {
  NSA_RETURN_IF_CUDA_ERROR(UseDevice(options.device));
  Allocator& allocator = *options.allocator;
  void* memory = nullptr;
  std::unique_ptr<CudaLane> lane(new CudaLane(options, limits));
  cudaStream_t stream = nullptr;
  NSA_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  lane->stream_.reset(stream);
  NSA_RETURN_IF_CUDA_ERROR(allocator.AllocatePinned(&memory, MostBytes(limits), cudaHostAllocMapped));
  lane->pinned_.reset(memory);
  const size_t on_device = kEndedBytes + std::max(MostBytes(limits), MostBytesFromLengths(limits));
  NSA_RETURN_IF_CUDA_ERROR(allocator.AllocateDevice(&memory, on_device));
  lane->on_device_.reset(memory);
  NSA_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(memory, 0, kEndedBytes, stream));
  NSA_RETURN_IF_CUDA_ERROR(allocator.AllocatePinned(&memory, kMostDoneFlags * sizeof(uint64_t), cudaHostAllocMapped));
  memset(memory, 0, kMostDoneFlags * sizeof(uint64_t));
  lane->done_.reset(memory);
  return lane;
}

cudaError_t CudaLane::Launch(Kernel kernel, const DoneFlags& done) {
  const size_t bytes = BatchLayout(inline_.size).bytes;
  const bool all_of_one = inline_.size.num_requests == 1 && !inline_.size.first_two;
  const size_t most = all_of_one ? std::min(kMostInlineBytesOfAll, kMostInlineBytes) : kMostInlineBytes;
  if (bytes <= most && options_.plan.input != Input::kCopied) {
    LayOut(batch_, inline_.size, inline_.data);
    return LaunchInline(kernel, inline_, done, stream_.get());
  }
  if (inline_.size.num_requests == 1) return LaunchLengths(kernel, done);
  LayOut(batch_, inline_.size, static_cast<unsigned char*>(pinned_.get()));
  const cudaError_t error =
      cudaMemcpyAsync(batch_on_device(), pinned_.get(), bytes, cudaMemcpyHostToDevice, stream_.get());
  if (error != cudaSuccess) return error;
  return LaunchStaged(kernel, inline_.size, batch_on_device(), done, stream_.get());
}

cudaError_t CudaLane::LaunchLengths(Kernel kernel, const DoneFlags& done) {
  const BatchedRequest& request = batch_.requests().front();
  const int64_t n = inline_.size.num_sequences;
  const bool many = n > kMostFusedSequences && options_.plan.input != Input::kCopied;
  auto* const copies = static_cast<int32_t*>(batch_on_device());
  int32_t* const workspace = copies + 2 * n;
  auto* const q = static_cast<int32_t*>(pinned_.get());
  // Across the bus warps read whole lines.
  int32_t* const s = q + (many ? (n + 31) / 32 * 32 : n);
  std::copy_n(request.extend_seq_lens, n, q);
  std::copy_n(request.seq_lens, n, s);
  DeviceLengths lengths = {.extend_seq_lens = q,
                           .seq_lens = s,
                           .size = inline_.size,
                           .request = ToDevice(request, /*first_sequence=*/0, /*first_token=*/0)};
  if (many) return LaunchFromHostLengths(kernel, lengths, copies, workspace, done, stream_.get());
  lengths.extend_seq_lens = copies;
  lengths.seq_lens = copies + n;
  if (n > 0) {
    const cudaError_t error = cudaMemcpyAsync(copies, q, LengthsBytes(n), cudaMemcpyHostToDevice, stream_.get());
    if (error != cudaSuccess) return error;
  }
  return LaunchFromLengths(kernel, lengths, /*total_tokens=*/nullptr, workspace, done, stream_.get());
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
  const int64_t blocks = NumBlocks(kernel, *size);
  DoneFlags done = {.flags = static_cast<uint64_t*>(done_.get()), .value = ++launches_};
  if (blocks > kMostDoneFlags) done.ended = static_cast<uint32_t*>(on_device_.get());
  NSA_RETURN_IF_CUDA_ERROR(Launch(kernel, done));
  if (absl::Status status = AwaitDone(done.ended == nullptr ? blocks : 1); !status.ok()) return status;
  return kernel;
}

absl::Status CudaLane::AwaitDone(int64_t count) const {
  // An error that ends the kernel leaves its flags as they are.
  constexpr uint64_t kLooksBetweenQueries = 1 << 14;
  const auto deadline = std::chrono::steady_clock::now() + options_.timeout;
  auto* const flags = static_cast<uint64_t*>(done_.get());
  for (int64_t i = 0; i < count; ++i) {
    const std::atomic_ref<uint64_t> flag(flags[i]);
    for (uint64_t looks = 1; flag.load(std::memory_order_acquire) != launches_; ++looks) {
      if (looks % kLooksBetweenQueries != 0) continue;
      const absl::StatusOr<bool> done = Done(deadline);
      if (!done.ok()) return done.status();
      if (*done) break;  // its flags are set
    }
  }
  return absl::OkStatus();
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
