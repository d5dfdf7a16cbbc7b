// Inputs: two arrays of int32 lengths, [num_sequences]. Up to 1,024 sequences every block scans the lengths in its
// shared memory and goes on with its tokens; more are scanned once, before, in global memory.

#include <thrust/iterator/counting_iterator.h>
#include <thrust/iterator/transform_iterator.h>

#include <cub/block/block_scan.cuh>
#include <cub/device/device_scan.cuh>

#include "kernels/cuda/device_lengths.h"
#include "kernels/cuda/versions.cuh"

namespace nsa::metadata::kernels::cuda {
namespace {

// Over the sequences before one.
struct Sums {
  int64_t tokens;
  SumsBefore before;
};

struct AddSums {
  __host__ __device__ Sums operator()(const Sums& a, const Sums& b) const {
    return {a.tokens + b.tokens, {a.before.k + b.before.k, a.before.nsa + b.before.nsa}};
  }
};

template <bool kFirstTwo>
__device__ __forceinline__ Sums SumsOf(const DeviceLengths& lengths, int32_t b) {
  const int32_t q = LengthAt(lengths.extend_seq_lens, b);
  if constexpr (kFirstTwo) return {q, {}};
  const int32_t s = LengthAt(lengths.seq_lens, b);
  const DeviceRequest& request = lengths.request;
  return {q, {static_cast<uint32_t>(s), NsaSum(request.mode, request.nsa_index_topk, q, s, q)}};
}

// A number past int32 is no token's: what begins there is not written.
__device__ __forceinline__ int32_t FirstToken(int64_t tokens) { return static_cast<int32_t>(Min(tokens, INT32_MAX)); }

struct Fused {
  DeviceLengths lengths;
  int64_t* total_tokens;
};

constexpr int kItems = kMostFusedSequences / kThreads;

template <bool kFirstTwo>
__device__ __forceinline__ Batch BatchOf(const Fused& source) {
  using Scan = cub::BlockScan<Sums, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  __shared__ int32_t first_tokens[kMostFusedSequences];
  __shared__ SumsBefore sums_before[kFirstTwo ? 1 : kMostFusedSequences];
  const DeviceLengths& lengths = source.lengths;
  const int32_t begin = threadIdx.x * kItems;
  Sums sums[kItems];
  for (int32_t item = 0; item < kItems; ++item) {
    sums[item] = begin + item < lengths.size.num_sequences ? SumsOf<kFirstTwo>(lengths, begin + item) : Sums{};
  }
  Sums total;
  Scan(storage).ExclusiveScan(sums, sums, Sums{}, AddSums(), total);
  for (int32_t item = 0; item < kItems; ++item) {
    first_tokens[begin + item] = FirstToken(sums[item].tokens);
    if constexpr (!kFirstTwo) sums_before[begin + item] = sums[item].before;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) *source.total_tokens = total.tokens;
  __syncthreads();
  return {.size = lengths.size,
          .arrays = {.requests = &lengths.request,
                     .first_tokens = first_tokens,
                     .extend_seq_lens = lengths.extend_seq_lens,
                     .seq_lens = lengths.seq_lens,
                     .sums_before = kFirstTwo ? nullptr : sums_before}};
}

struct Scanned {
  DeviceLengths lengths;
  const int32_t* first_tokens;
  const SumsBefore* sums_before;
};

template <bool kFirstTwo>
__device__ __forceinline__ Batch BatchOf(const Scanned& source) {
  const DeviceLengths& lengths = source.lengths;
  return {.size = lengths.size,
          .arrays = {.requests = &lengths.request,
                     .first_tokens = source.first_tokens,
                     .extend_seq_lens = lengths.extend_seq_lens,
                     .seq_lens = lengths.seq_lens,
                     .sums_before = kFirstTwo ? nullptr : source.sums_before}};
}

// What the scan reads: the sums of a sequence, and nothing for the one past the last, before which the total is.
template <bool kFirstTwo>
struct SumsAt {
  DeviceLengths lengths;
  __device__ Sums operator()(int32_t b) const {
    return b < lengths.size.num_sequences ? SumsOf<kFirstTwo>(lengths, b) : Sums{};
  }
};

// What the scan writes: an iterator whose elements are spread over the workspace's arrays.
struct SpreadOut {
  using iterator_category = std::random_access_iterator_tag;
  using value_type = Sums;
  using difference_type = int64_t;
  using pointer = void;

  struct Reference {
    const SpreadOut& out;
    int64_t b;
    __device__ void operator=(const Sums& sums) const {
      if (b == out.num_sequences) {
        *out.total_tokens = sums.tokens;
      } else {
        out.first_tokens[b] = FirstToken(sums.tokens);
        out.sums_before[b] = sums.before;
      }
    }
  };
  using reference = Reference;

  __host__ __device__ SpreadOut operator+(int64_t n) const {
    SpreadOut moved = *this;
    moved.at += n;
    return moved;
  }
  __device__ Reference operator[](int64_t n) const { return {*this, at + n}; }

  int64_t* total_tokens;
  int32_t* first_tokens;
  SumsBefore* sums_before;
  int64_t num_sequences;
  int64_t at = 0;
};

// The workspace's parts.
struct Workspace {
  Workspace(void* memory, int32_t num_sequences)
      : total_tokens(static_cast<int64_t*>(memory)),
        sums_before(reinterpret_cast<SumsBefore*>(total_tokens + 1)),
        first_tokens(reinterpret_cast<int32_t*>(sums_before + num_sequences)),
        scratch(reinterpret_cast<unsigned char*>(memory) + ScratchAt(num_sequences)) {}

  static size_t ScratchAt(int32_t num_sequences) {
    const size_t bytes = sizeof(int64_t) + num_sequences * (sizeof(SumsBefore) + sizeof(int32_t));
    return (bytes + 255) / 256 * 256;
  }

  int64_t* total_tokens;
  SumsBefore* sums_before;
  int32_t* first_tokens;
  void* scratch;
};

template <bool kFirstTwo>
cudaError_t Scan(const DeviceLengths& lengths, const Workspace& workspace, void* scratch, size_t* scratch_bytes,
                 cudaStream_t stream) {
  const auto in = thrust::make_transform_iterator(thrust::counting_iterator<int32_t>(0), SumsAt<kFirstTwo>{lengths});
  const SpreadOut out = {workspace.total_tokens, workspace.first_tokens, workspace.sums_before,
                         lengths.size.num_sequences};
  return cub::DeviceScan::ExclusiveScan(scratch, *scratch_bytes, in, out, AddSums(), Sums{},
                                        lengths.size.num_sequences + 1, stream);
}

}  // namespace

size_t SumsWorkspaceBytes(int32_t num_sequences) {
  size_t scratch_bytes = 0;
  if (num_sequences > kMostFusedSequences) {
    DeviceLengths lengths;
    lengths.size.num_sequences = num_sequences;
    Scan<false>(lengths, Workspace(nullptr, 0), nullptr, &scratch_bytes, nullptr);
  }
  return Workspace::ScratchAt(num_sequences) + scratch_bytes;
}

cudaError_t LaunchFromLengths(Kernel kernel, const DeviceLengths& lengths, void* memory, cudaStream_t stream) {
  const int32_t num_sequences = lengths.size.num_sequences;
  const Workspace workspace(memory, num_sequences);
  if (num_sequences <= kMostFusedSequences) {
    const Fused source = {.lengths = lengths, .total_tokens = workspace.total_tokens};
    return Launch<Fused>(kernel, lengths.size, &source, {}, stream);
  }
  size_t scratch_bytes = SumsWorkspaceBytes(num_sequences) - Workspace::ScratchAt(num_sequences);
  const auto scan = lengths.size.first_two ? &Scan<true> : &Scan<false>;
  if (cudaError_t error = scan(lengths, workspace, workspace.scratch, &scratch_bytes, stream); error != cudaSuccess) {
    return error;
  }
  const Scanned source = {
      .lengths = lengths, .first_tokens = workspace.first_tokens, .sums_before = workspace.sums_before};
  return Launch<Scanned>(kernel, lengths.size, &source, {}, stream);
}

}  // namespace nsa::metadata::kernels::cuda
