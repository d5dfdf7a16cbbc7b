#include "kernels/cuda/lane.h"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/check.h"
#include "kernels/cuda/search_kernels.h"
#include "kernels/measure.h"

namespace nsa::metadata::kernels::cuda {
namespace {

// Arrays one after another in memory that the host writes and the device has a copy of.
class Stager {
 public:
  Stager(void* host, void* device) : host_(static_cast<char*>(host)), device_(static_cast<char*>(device)) {}

  // Room for `count` values: where the host writes them; `*on_device` is where the device reads them.
  template <typename T>
  T* Take(int64_t count, const T** on_device) {
    T* host = reinterpret_cast<T*>(host_ + used_);
    *on_device = reinterpret_cast<const T*>(device_ + used_);
    used_ += (static_cast<size_t>(count) * sizeof(T) + 7) / 8 * 8;
    return host;
  }
  size_t used() const { return used_; }

 private:
  char* host_;
  char* device_;
  size_t used_ = 0;
};

size_t StagedBytes(const LaneLimits& limits) {
  const size_t a_sequence = sizeof(int64_t) + sizeof(SumsBefore) + 3 * sizeof(int32_t);
  return static_cast<size_t>(limits.max_sequences) * a_sequence +
         static_cast<size_t>(limits.max_requests) * sizeof(DeviceRequest) + 64;
}

}  // namespace

CudaLane::CudaLane(int device, const LaunchPlan& plan, const LaneLimits& limits)
    : device_(device),
      plan_(plan),
      extend_seq_lens_(limits.max_sequences),
      seq_lens_(limits.max_sequences),
      batch_(extend_seq_lens_, seq_lens_, limits.max_requests) {}

absl::StatusOr<std::unique_ptr<CudaLane>> CudaLane::Create(int device, const LaunchPlan& plan,
                                                           const LaneLimits& limits) {
  std::unique_ptr<CudaLane> lane(new CudaLane(device, plan, limits));
  NSA_RETURN_IF_CUDA_ERROR(cudaSetDevice(device));
  cudaStream_t stream = nullptr;
  NSA_RETURN_IF_CUDA_ERROR(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  lane->stream_.reset(stream);
  void* memory = nullptr;
  NSA_RETURN_IF_CUDA_ERROR(cudaHostAlloc(&memory, StagedBytes(limits), cudaHostAllocWriteCombined));
  lane->pinned_.reset(memory);
  NSA_RETURN_IF_CUDA_ERROR(cudaMalloc(&memory, StagedBytes(limits)));
  lane->on_device_.reset(memory);
  return lane;
}

size_t CudaLane::Stage(DeviceBatch* on_device) {
  const int64_t num_sequences = batch_.num_sequences();
  const int64_t num_requests = static_cast<int64_t>(batch_.requests().size());
  Stager stager(pinned_.get(), on_device_.get());
  int64_t* first_tokens = stager.Take(num_sequences + 1, &on_device->first_tokens);
  SumsBefore* sums_before = stager.Take(num_sequences, &on_device->sums_before);
  DeviceRequest* requests = stager.Take(num_requests, &on_device->requests);
  int32_t* request_of = stager.Take(num_sequences, &on_device->request_of);
  int32_t* q = stager.Take(num_sequences, &on_device->extend_seq_lens);
  int32_t* s = stager.Take(num_sequences, &on_device->seq_lens);
  on_device->num_sequences = num_sequences;
  on_device->num_requests = num_requests;
  on_device->capacity = batch_.total_tokens();

  memcpy(q, batch_.extend_seq_lens().data(), num_sequences * sizeof *q);
  memcpy(s, batch_.seq_lens().data(), num_sequences * sizeof *s);
  for (int64_t r = 0; r < num_requests; ++r) {
    const PackedRequest& request = batch_.requests()[r];
    DeviceRequest staged;
    staged.first_sequence = request.first_sequence;
    staged.first_token = request.first_token;
    staged.nsa_index_topk = request.spec.nsa_index_topk;
    staged.mode = request.spec.mode;
    std::copy(request.out.begin(), request.out.end(), staged.out);
    requests[r] = staged;
    const bool needs_nsa = request.spec.outputs.Has(Output::kNsaCuSeqlensK);
    int64_t token = request.first_token;
    SumsBefore before;
    for (int64_t b = request.first_sequence; b < request.first_sequence + request.num_sequences; ++b) {
      first_tokens[b] = token;
      sums_before[b] = before;
      request_of[b] = static_cast<int32_t>(r);
      const int64_t length = extend_seq_lens_[b];
      token += length;
      before.k += seq_lens_[b];
      if (needs_nsa) before.nsa += NsaTokens(request.spec, length, seq_lens_[b]);
    }
  }
  first_tokens[num_sequences] = batch_.total_tokens();
  return stager.used();
}

absl::StatusOr<Kernel> CudaLane::Expand() {
  // The runtime's device is a thread's own, and any thread may run a lane.
  NSA_RETURN_IF_CUDA_ERROR(cudaSetDevice(device_));
  DeviceBatch batch;
  const size_t bytes = Stage(&batch);
  NSA_RETURN_IF_CUDA_ERROR(
      cudaMemcpyAsync(on_device_.get(), pinned_.get(), bytes, cudaMemcpyHostToDevice, stream_.get()));
  const Kernel kernel = ChooseKernel(plan_, batch.num_sequences);
  if (kernel == Kernel::kLinear) {
    NSA_RETURN_IF_CUDA_ERROR(LaunchLinear(batch, batch.capacity, stream_.get()));
  } else {
    NSA_RETURN_IF_CUDA_ERROR(LaunchBinary(batch, batch.capacity, stream_.get()));
  }
  NSA_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_.get()));
  return kernel;
}

}  // namespace nsa::metadata::kernels::cuda
