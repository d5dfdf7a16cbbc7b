// Inputs: two arrays of int32 lengths, [num_sequences]; for `binary` also int64 running sums over them. Outputs: int32
// arrays, one value a token or a sequence. Versions:
//   linear  walks from the first sequence; few sequences, no sums needed
//   binary  searches the running sums: log2(num_sequences) steps

#include <cub/block/block_scan.cuh>

#include "kernels/cuda/expand.cuh"
#include "kernels/cuda/search_kernels.h"

namespace nsa::metadata::kernels::cuda {
namespace {

// The sums of a walk over sequences, which begin anew with each request.
class Walk {
 public:
  __device__ explicit Walk(const DeviceBatch& batch) : batch_(batch) { Load(); }

  __device__ const Place& place() const { return place_; }
  __device__ bool AtEnd() const { return place_.b == batch_.num_sequences; }

  __device__ void Step() {
    const DeviceRequest& request = RequestAt(batch_, request_);
    place_.before.k += place_.s;
    place_.before.nsa += NsaSum(request.mode, request.nsa_index_topk, place_.q, place_.s, place_.q);
    place_.first_token += place_.q;
    ++place_.b;
    Load();
  }

 private:
  __device__ void Load() {
    if (AtEnd()) return;
    const int64_t request = RequestIndexOf(batch_, place_.b);
    if (request != request_) place_.before = {};
    request_ = request;
    place_.q = LengthAt(batch_.extend_seq_lens, place_.b);
    place_.s = LengthAt(batch_.seq_lens, place_.b);
  }

  const DeviceBatch& batch_;
  int64_t request_ = 0;
  Place place_ = {};
};

struct LinearSearch {
  __device__ static bool Token(const DeviceBatch& batch, int64_t t, Place* place) {
    Walk walk(batch);
    while (!walk.AtEnd() && t >= walk.place().first_token + walk.place().q) walk.Step();
    *place = walk.place();
    return !walk.AtEnd();
  }
  __device__ static void Sequence(const DeviceBatch& batch, int64_t b, Place* place) {
    Walk walk(batch);
    while (walk.place().b < b) walk.Step();
    *place = walk.place();
  }
};

struct BinarySearch {
  __device__ static bool Token(const DeviceBatch& batch, int64_t t, Place* place) {
    // The first sequence that begins after t; the one before it holds t, and those without a token before that begin no
    // later.
    int64_t low = 0;
    int64_t high = batch.num_sequences + 1;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (batch.first_tokens[middle] > t) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    if (low > batch.num_sequences) return false;
    Sequence(batch, low - 1, place);
    return true;
  }
  __device__ static void Sequence(const DeviceBatch& batch, int64_t b, Place* place) {
    *place = {.b = b,
              .first_token = batch.first_tokens[b],
              .q = LengthAt(batch.extend_seq_lens, b),
              .s = LengthAt(batch.seq_lens, b),
              .before = batch.sums_before[b]};
  }
};

constexpr int kSumThreads = 512;

struct Sums {
  int64_t tokens;
  SumsBefore before;
};

struct AddSums {
  __device__ Sums operator()(const Sums& a, const Sums& b) const {
    return {a.tokens + b.tokens, {a.before.k + b.before.k, a.before.nsa + b.before.nsa}};
  }
};

__device__ Sums SumsOf(const DeviceBatch& batch, int64_t b) {
  const int64_t q = LengthAt(batch.extend_seq_lens, b);
  const int64_t s = LengthAt(batch.seq_lens, b);
  const DeviceRequest& request = batch.only_request;
  return {q, {s, NsaSum(request.mode, request.nsa_index_topk, q, s, q)}};
}

// Each thread sums a stretch of its own, the block scans the stretches, and each thread walks its stretch again.
__global__ void __launch_bounds__(kSumThreads)
    ComputeSums(const __grid_constant__ DeviceBatch batch, int64_t* first_tokens, SumsBefore* sums_before) {
  using Scan = cub::BlockScan<Sums, kSumThreads>;
  __shared__ typename Scan::TempStorage storage;
  const int64_t stretch = (batch.num_sequences + kSumThreads - 1) / kSumThreads;
  const int64_t begin = Min(threadIdx.x * stretch, batch.num_sequences);
  const int64_t end = Min(begin + stretch, batch.num_sequences);
  const AddSums add;
  Sums sums = {};
  for (int64_t b = begin; b < end; ++b) sums = add(sums, SumsOf(batch, b));
  Sums before;
  Sums total;
  Scan(storage).ExclusiveScan(sums, before, Sums{}, add, total);
  for (int64_t b = begin; b < end; ++b) {
    first_tokens[b] = before.tokens;
    sums_before[b] = before.before;
    before = add(before, SumsOf(batch, b));
  }
  if (threadIdx.x == 0) first_tokens[batch.num_sequences] = total.tokens;
}

__global__ void ComputeTotal(const __grid_constant__ DeviceBatch batch, int64_t* total) {
  int64_t sum = 0;
  for (int64_t b = 0; b < batch.num_sequences; ++b) sum += LengthAt(batch.extend_seq_lens, b);
  *total = sum;
}

template <typename Search>
cudaError_t LaunchExpand(const DeviceBatch& batch, int64_t tokens, cudaStream_t stream) {
  const int64_t blocks = tokens <= kThreads ? 1 : (tokens + kThreads - 1) / kThreads;
  Expand<Search><<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(batch);
  return cudaGetLastError();
}

}  // namespace

cudaError_t LaunchLinear(const DeviceBatch& batch, int64_t tokens, cudaStream_t stream) {
  return LaunchExpand<LinearSearch>(batch, tokens, stream);
}

cudaError_t LaunchBinary(const DeviceBatch& batch, int64_t tokens, cudaStream_t stream) {
  return LaunchExpand<BinarySearch>(batch, tokens, stream);
}

cudaError_t LaunchSums(const DeviceBatch& batch, int64_t* first_tokens, SumsBefore* sums_before, cudaStream_t stream) {
  ComputeSums<<<1, kSumThreads, 0, stream>>>(batch, first_tokens, sums_before);
  return cudaGetLastError();
}

cudaError_t LaunchTotal(const DeviceBatch& batch, int64_t* total, cudaStream_t stream) {
  ComputeTotal<<<1, 1, 0, stream>>>(batch, total);
  return cudaGetLastError();
}

cudaError_t CompiledFrom(int* ptx_version) {
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, Expand<BinarySearch>);
  if (error == cudaSuccess) *ptx_version = attributes.ptxVersion;
  return error;
}

}  // namespace nsa::metadata::kernels::cuda
