// Inputs: two arrays of int32 lengths, [num_sequences]. Where a token's sequence begins follows from sums over the
// sequences before it:
//   up to 32 sequences     each warp scans them for itself, then goes on with its tokens
//   up to 1,024 sequences  each block does
//   up to 4,096, or 3,072  each block does, in more memory, where the blocks are few; 3,072 where more than the first
//                          two outputs are asked
//   more                   a kernel scans them by chunks, a block a chunk; in the one after it each block scans the 64
//                          chunks' sums, and adds a sequence's chunk's to its own where it needs them
// More than 1,024 whose lengths are still in the host's memory are scanned by chunks too, and taken from there by that.

#include <cub/block/block_scan.cuh>
#include <cub/warp/warp_scan.cuh>

#include "kernels/cuda/device_lengths.h"
#include "kernels/cuda/versions.cuh"
#include "kernels/launch_plan.h"

namespace nsa::metadata::kernels::cuda {
namespace {

constexpr int kFusedItems = 4;
constexpr int32_t kBlockSequences = kThreads * kFusedItems;
static_assert(kBlockSequences == kMostFusedSequences);
constexpr int32_t kMostChunks = 64;

struct Add {
  __device__ __forceinline__ Sums operator()(const Sums& a, const Sums& b) const { return a + b; }
};

template <bool kFirstTwo>
__device__ __forceinline__ Sums SumsOf(const DeviceLengths& lengths, int32_t b) {
  if (b >= lengths.size.num_sequences) return {};
  const int32_t q = LengthAt(lengths.extend_seq_lens, b);
  if constexpr (kFirstTwo) return {q, {}};
  const int32_t s = LengthAt(lengths.seq_lens, b);
  const DeviceRequest& request = lengths.request;
  return {q, {static_cast<uint32_t>(s), NsaSum(request.mode, request.nsa_index_topk, q, s, q)}};
}

// What comes before each of a block's sequences, kItems a thread from `begin` on, in memory that has room for all of
// them. Returns the sums over these.
template <bool kFirstTwo, int kItems>
__device__ __forceinline__ Sums ScanBlock(const DeviceLengths& lengths, int32_t begin, const Sums& before,
                                          int32_t* first_tokens, SumsBefore* sums_before) {
  using Scan = cub::BlockScan<Sums, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  const int32_t mine = begin + threadIdx.x * kItems;
  Sums sums[kItems];
#pragma unroll
  for (int32_t item = 0; item < kItems; ++item) sums[item] = SumsOf<kFirstTwo>(lengths, mine + item);
  Sums total;
  Scan(storage).ExclusiveScan(sums, sums, Sums{}, Add(), total);
#pragma unroll
  for (int32_t item = 0; item < kItems; ++item) {
    if (mine + item >= lengths.size.num_sequences) break;
    const Sums here = before + sums[item];
    first_tokens[mine + item] = FirstToken(here.tokens);
    if constexpr (!kFirstTwo) sums_before[mine + item] = here.before;
  }
  return total;
}

__device__ __forceinline__ BatchArrays ArraysOf(const DeviceLengths& lengths) {
  return {.requests = &lengths.request, .seq_lens = lengths.seq_lens};
}

// The sum, by `add`, of what the lanes before this one have.
template <typename Add>
__device__ __forceinline__ uint32_t WarpSumBefore(uint32_t value, Add add) {
  const int32_t lane = threadIdx.x % kWarp;
  for (int32_t distance = 1; distance < kWarp; distance *= 2) {
    const uint32_t before = __shfl_up_sync(~0u, value, distance);
    if (lane >= distance) value = add(value, before);
  }
  const uint32_t before = __shfl_up_sync(~0u, value, 1);
  return lane == 0 ? 0 : before;
}

struct Few {
  DeviceLengths lengths;
  int64_t* total_tokens;
};

// Everything that is read of a sequence goes to shared memory at once: nothing is waited for twice.
template <bool kFirstTwo>
__device__ __forceinline__ Batch<FlatSums> BatchOf(const Few& source) {
  __shared__ int32_t all_q[kWarps][kWarp];
  __shared__ int32_t all_s[kWarps][kWarp];
  __shared__ int32_t first_tokens[kWarps][kWarp];
  __shared__ SumsBefore sums_before[kWarps][kFirstTwo ? 1 : kWarp];
  const DeviceLengths& lengths = source.lengths;
  const int32_t warp = threadIdx.x / kWarp;
  const int32_t lane = threadIdx.x % kWarp;
  const bool in = lane < lengths.size.num_sequences;
  const int32_t q = in ? LengthAt(lengths.extend_seq_lens, lane) : 0;
  const int32_t s = in ? LengthAt(lengths.seq_lens, lane) : 0;
  all_q[warp][lane] = q;
  all_s[warp][lane] = s;
  first_tokens[warp][lane] = WarpSumBefore(q, [](uint32_t a, uint32_t b) { return min(a + b, uint32_t{INT32_MAX}); });
  if constexpr (!kFirstTwo) {
    const auto add = [](uint32_t a, uint32_t b) { return a + b; };
    const DeviceRequest& request = lengths.request;
    sums_before[warp][lane] = {WarpSumBefore(s, add),
                               WarpSumBefore(NsaSum(request.mode, request.nsa_index_topk, q, s, q), add)};
  }
  if (blockIdx.x == 0 && warp == 0) {
    int64_t total = q;
    for (int32_t distance = 1; distance < kWarp; distance *= 2) total += __shfl_xor_sync(~0u, total, distance);
    if (lane == 0 && source.total_tokens != nullptr) *source.total_tokens = total;
  }
  __syncwarp();
  return {.size = lengths.size,
          .arrays = {.requests = &lengths.request, .seq_lens = all_s[warp]},
          .before = {.first_tokens = first_tokens[warp],
                     .sums_before = kFirstTwo ? nullptr : sums_before[warp],
                     .extend_seq_lens = all_q[warp]}};
}

template <typename Source>
__device__ __forceinline__ void PutTotal(const Source& source, const Sums& total) {
  if (blockIdx.x == 0 && threadIdx.x == 0 && source.total_tokens != nullptr) *source.total_tokens = total.tokens;
}

struct Fused {
  DeviceLengths lengths;
  int64_t* total_tokens;
};

template <bool kFirstTwo>
__device__ __forceinline__ Batch<FlatSums> BatchOf(const Fused& source) {
  __shared__ int32_t first_tokens[kBlockSequences];
  __shared__ SumsBefore sums_before[kFirstTwo ? 1 : kBlockSequences];
  const Sums total = ScanBlock<kFirstTwo, kFusedItems>(source.lengths, 0, Sums{}, first_tokens, sums_before);
  PutTotal(source, total);
  __syncthreads();
  return {.size = source.lengths.size,
          .arrays = ArraysOf(source.lengths),
          .before = {.first_tokens = first_tokens,
                     .sums_before = kFirstTwo ? nullptr : sums_before,
                     .extend_seq_lens = source.lengths.extend_seq_lens}};
}

// For more sequences than Fused takes, in shared memory that the launch asks for: each block scans all of them.
struct Wide {
  DeviceLengths lengths;
  int32_t each;  // sequences a thread
  int64_t* total_tokens;
};
// Beyond so many blocks a scan of its own is quicker (H100).
constexpr int64_t kMostWideBlocks = 264;
static_assert(kMostWideBinaryTokens <= kMostWideBlocks * kThreads, "the plan's choice is launched so");
static_assert(kSomeTokens == kMostWideBlocks * kThreads * kTokensAThread, "more tokens are more steps, not more blocks");

// Where a sequence's sums lie: threads that go through several each then seldom meet in a bank.
__host__ __device__ constexpr int32_t Spread(int32_t b) { return b + b / kWarp; }

constexpr size_t WideBytes(bool first_two, int32_t each) {
  return static_cast<size_t>(Spread(kThreads * each)) * (sizeof(int32_t) + (first_two ? 0 : sizeof(SumsBefore)));
}

// 48 KiB are a kernel's without asking, less what it declares.
static_assert(WideBytes(/*first_two=*/true, MostWideSequences(true) / kThreads) <= 40 << 10);
static_assert(WideBytes(/*first_two=*/false, MostWideSequences(false) / kThreads) <= 40 << 10);

// FlatSums' functions, for sums that are spread.
template <bool kFirstTwo>
struct WideSums {
  const int32_t* first_tokens;
  const SumsBefore* sums_before;
  const int32_t* extend_seq_lens;

  __device__ __forceinline__ int32_t FirstTokenOf(int32_t b) const { return first_tokens[Spread(b)]; }
  __device__ __forceinline__ int32_t TokensOf(int32_t b, const DeviceRequest&) const {
    return LengthAt(extend_seq_lens, b);
  }
  __device__ __forceinline__ SumsBefore SumsBeforeOf(int32_t b) const {
    if constexpr (kFirstTwo) return {};
    return sums_before[Spread(b)];
  }
};

// Read as they lie, then scanned by threads that take some each, one after another.
template <bool kFirstTwo>
__device__ __forceinline__ Batch<WideSums<kFirstTwo>> BatchOf(const Wide& source) {
  using Scan = cub::BlockScan<Sums, kThreads>;
  __shared__ typename Scan::TempStorage storage;
  extern __shared__ SumsBefore room[];
  const int32_t count = source.each * kThreads;
  SumsBefore* const sums_before = room;
  auto* const first_tokens = reinterpret_cast<int32_t*>(room + (kFirstTwo ? 0 : Spread(count)));
#pragma unroll 8
  for (int32_t b = threadIdx.x; b < count; b += kThreads) {
    const Sums sums = SumsOf<kFirstTwo>(source.lengths, b);
    first_tokens[Spread(b)] = static_cast<int32_t>(sums.tokens);
    if constexpr (!kFirstTwo) sums_before[Spread(b)] = sums.before;
  }
  __syncthreads();
  const auto at = [&](int32_t b) -> Sums {
    if constexpr (kFirstTwo) return {first_tokens[Spread(b)], {}};
    return {first_tokens[Spread(b)], sums_before[Spread(b)]};
  };
  const int32_t first = threadIdx.x * source.each;
  Sums mine;
  for (int32_t b = first; b < first + source.each; ++b) mine = mine + at(b);
  Sums before;
  Sums total;
  Scan(storage).ExclusiveScan(mine, before, Sums{}, Add(), total);
  for (int32_t b = first; b < first + source.each; ++b) {
    const Sums here = at(b);
    first_tokens[Spread(b)] = FirstToken(before.tokens);
    if constexpr (!kFirstTwo) sums_before[Spread(b)] = before.before;
    before = before + here;
  }
  PutTotal(source, total);
  __syncthreads();
  return {.size = source.lengths.size,
          .arrays = ArraysOf(source.lengths),
          .before = {.first_tokens = first_tokens,
                     .sums_before = sums_before,
                     .extend_seq_lens = source.lengths.extend_seq_lens}};
}

// Lengths in chunks of 2^shift sequences, kThreads or a multiple of kBlockSequences, at most kMostChunks of them.
struct Chunked {
  DeviceLengths lengths;
  int32_t shift;
  int32_t num_chunks;
  Sums* chunks;  // [num_chunks], over each
  int64_t* total_tokens;
  int32_t* first_tokens;    // [num_sequences], from the chunk's begin on
  SumsBefore* sums_before;  // [num_sequences], likewise
};

// FlatSums' functions, for sums that begin anew with each chunk.
template <bool kFirstTwo>
struct ChunkedSums {
  const int32_t* first_tokens;
  const SumsBefore* sums_before;
  const int32_t* extend_seq_lens;
  const Sums* chunks;  // before each
  int32_t num_chunks;
  int32_t shift;

  __device__ __forceinline__ int32_t FirstTokenOf(int32_t b) const {
    return FirstToken(chunks[b >> shift].tokens + first_tokens[b]);
  }
  __device__ __forceinline__ int32_t TokensOf(int32_t b, const DeviceRequest&) const {
    return LengthAt(extend_seq_lens, b);
  }
  __device__ __forceinline__ SumsBefore SumsBeforeOf(int32_t b) const {
    if constexpr (kFirstTwo) return {};
    const SumsBefore& before = chunks[b >> shift].before;
    return {before.k + sums_before[b].k, before.nsa + sums_before[b].nsa};
  }
  // The last chunk that begins at or before t, which all threads of the warp ask for.
  __device__ __forceinline__ Range RangeOf(const BatchSize& size, int32_t t) const {
    int32_t begun = 0;
#pragma unroll
    for (int32_t i = 0; i < kMostChunks; i += kWarp) {
      const int32_t chunk = i + static_cast<int32_t>(threadIdx.x) % kWarp;
      begun += __popc(__ballot_sync(~0u, chunk < num_chunks && chunks[chunk].tokens <= t));
    }
    return {(begun - 1) << shift, min(begun << shift, size.num_sequences)};
  }
};

// What a scan takes across the bus on its way.
struct OnHost {
  const int32_t* extend_seq_lens;  // [num_sequences]
  const int32_t* seq_lens;         // [num_sequences]
  int32_t* copies;                 // [2][num_sequences], the device's; null where the lengths are there already
};

// Copies kItems sequences a thread, from `begin` on and before `end`, all reads under way at once.
template <int kItems>
__device__ __forceinline__ void CopyLengths(const OnHost& host, int32_t num_sequences, int32_t begin, int32_t end) {
  int32_t q[kItems];
  int32_t s[kItems];
#pragma unroll
  for (int32_t item = 0; item < kItems; ++item) {
    const int32_t b = begin + item * kThreads + static_cast<int32_t>(threadIdx.x);
    if (b >= end) break;
    q[item] = host.extend_seq_lens[b];
    s[item] = host.seq_lens[b];
  }
#pragma unroll
  for (int32_t item = 0; item < kItems; ++item) {
    const int32_t b = begin + item * kThreads + static_cast<int32_t>(threadIdx.x);
    if (b >= end) break;
    host.copies[b] = q[item];
    host.copies[num_sequences + b] = s[item];
  }
  __syncthreads();
}

template <bool kFirstTwo, int kItems>
__device__ __forceinline__ Sums ScanChunk(const Chunked& source, const OnHost& host) {
  const int32_t num_sequences = source.lengths.size.num_sequences;
  const int32_t chunk = static_cast<int32_t>(blockIdx.x) << source.shift;
  const int32_t end = min(chunk + (1 << source.shift), num_sequences);
  Sums sums = {};
  for (int32_t begin = chunk; begin < end; begin += kThreads * kItems) {
    if (host.copies != nullptr) CopyLengths<kItems>(host, num_sequences, begin, end);
    sums = sums + ScanBlock<kFirstTwo, kItems>(source.lengths, begin, sums, source.first_tokens, source.sums_before);
    __syncthreads();  // the scan's memory is used again
  }
  return sums;
}

template <bool kFirstTwo>
__global__ void __launch_bounds__(kThreads) ScanChunks(const __grid_constant__ Chunked source, OnHost host) {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();  // the next kernel may come and wait
#endif
  const Sums sums = (1 << source.shift) == kThreads ? ScanChunk<kFirstTwo, 1>(source, host)
                                                    : ScanChunk<kFirstTwo, kFusedItems>(source, host);
  if (threadIdx.x == 0) source.chunks[blockIdx.x] = sums;
}

template <bool kFirstTwo>
__device__ __forceinline__ Batch<ChunkedSums<kFirstTwo>> BatchOf(const Chunked& source) {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();  // on the chunks' scan, which this kernel was launched beside
#endif
  using Scan = cub::WarpScan<Sums>;
  constexpr int32_t kEach = kMostChunks / kWarp;
  __shared__ typename Scan::TempStorage storage;
  __shared__ Sums chunks[kMostChunks];
  if (threadIdx.x < kWarp) {
    Sums sums[kEach];
    Sums mine = {};
    for (int32_t i = 0; i < kEach; ++i) {
      const int32_t chunk = threadIdx.x * kEach + i;
      sums[i] = chunk < source.num_chunks ? source.chunks[chunk] : Sums{};
      mine = mine + sums[i];
    }
    Sums before;
    Sums total;
    Scan(storage).ExclusiveScan(mine, before, Sums{}, Add(), total);
    for (int32_t i = 0; i < kEach; ++i) {
      chunks[threadIdx.x * kEach + i] = before;
      before = before + sums[i];
    }
    PutTotal(source, total);
  }
  __syncthreads();
  return {.size = source.lengths.size,
          .arrays = ArraysOf(source.lengths),
          .before = {.first_tokens = source.first_tokens,
                     .sums_before = source.sums_before,
                     .extend_seq_lens = source.lengths.extend_seq_lens,
                     .chunks = chunks,
                     .num_chunks = source.num_chunks,
                     .shift = source.shift}};
}

// Whether a kernel may be launched before the one that it waits for is over: only code for Hopper or newer waits.
bool CanLaunchEarly() {
  thread_local int known_device = -1;
  thread_local bool can = false;
  int device = 0;
  if (cudaGetDevice(&device) != cudaSuccess) return false;
  if (device != known_device) {
    RunningCode code;
    can = GetRunningCode(&code) == cudaSuccess && code.compiled_from >= 90;
    known_device = device;
  }
  return can;
}

bool FitsWide(Kernel kernel, const BatchSize& size) {
  return size.num_sequences <= MostWideSequences(size.first_two) &&
         NumBlocks(kernel, size) <= kMostWideBlocks;
}

cudaError_t LaunchWide(Kernel kernel, const DeviceLengths& lengths, int64_t* total_tokens, const DoneFlags& done,
                       cudaStream_t stream) {
  const int32_t each = (lengths.size.num_sequences + kThreads - 1) / kThreads;
  const Wide source = {.lengths = lengths, .each = each, .total_tokens = total_tokens};
  return Launch<Wide, Linear, Binary, Rows, Tile>(kernel, lengths.size, &source, done, stream,
                                                  {.shared_bytes = WideBytes(lengths.size.first_two, each)});
}

cudaError_t LaunchChunked(Kernel kernel, const DeviceLengths& lengths, const OnHost& host, int64_t* total_tokens,
                          void* workspace, const DoneFlags& done, cudaStream_t stream) {
  const int32_t num_sequences = lengths.size.num_sequences;
  Chunked source = {.lengths = lengths,
                    .shift = 8,
                    .num_chunks = 0,
                    .chunks = nullptr,
                    .total_tokens = total_tokens,
                    .first_tokens = nullptr,
                    .sums_before = nullptr};
  static_assert(1 << 8 == kThreads, "of small chunks each thread takes one sequence");
  if (num_sequences > kMostChunks * kThreads) {
    while ((1 << source.shift) < kBlockSequences) ++source.shift;
    while ((int64_t{kMostChunks} << source.shift) < num_sequences) ++source.shift;
  }
  source.num_chunks = (num_sequences + (1 << source.shift) - 1) >> source.shift;
  source.chunks = static_cast<Sums*>(workspace);
  source.sums_before = reinterpret_cast<SumsBefore*>(source.chunks + kMostChunks);
  source.first_tokens = reinterpret_cast<int32_t*>(source.sums_before + num_sequences);
  const auto blocks = static_cast<unsigned>(source.num_chunks);
  const void* scan = lengths.size.first_two ? reinterpret_cast<const void*>(&ScanChunks<true>)
                                            : reinterpret_cast<const void*>(&ScanChunks<false>);
  void* parameters[] = {&source, const_cast<OnHost*>(&host)};
  const cudaError_t error = cudaLaunchKernel(scan, dim3(blocks), dim3(kThreads), parameters, 0, stream);
  if (error != cudaSuccess) return error;
  return Launch<Chunked, Linear, Binary, Rows, Tile>(kernel, lengths.size, &source, done, stream,
                                                     {.early = CanLaunchEarly()});
}

}  // namespace

size_t SumsWorkspaceBytes(int32_t num_sequences) {
  if (num_sequences <= kMostFusedSequences) return 0;
  return kMostChunks * sizeof(Sums) + static_cast<size_t>(num_sequences) * (sizeof(SumsBefore) + sizeof(int32_t));
}

cudaError_t LaunchFromLengths(Kernel kernel, const DeviceLengths& lengths, int64_t* total_tokens, void* workspace,
                              const DoneFlags& done, cudaStream_t stream) {
  if (lengths.size.num_sequences > kMostFusedSequences) {
    if (FitsWide(kernel, lengths.size)) return LaunchWide(kernel, lengths, total_tokens, done, stream);
    return LaunchChunked(kernel, lengths, OnHost{}, total_tokens, workspace, done, stream);
  }
  if (lengths.size.num_sequences > kWarp) {
    const Fused source = {.lengths = lengths, .total_tokens = total_tokens};
    return Launch<Fused, Linear, Binary, Rows, Tile>(kernel, lengths.size, &source, done, stream);
  }
  const Few source = {.lengths = lengths, .total_tokens = total_tokens};
  return Launch<Few, Linear, Binary, Rows, Tile>(kernel, lengths.size, &source, done, stream);
}

cudaError_t LaunchFromHostLengths(Kernel kernel, const DeviceLengths& lengths, int32_t* copies, void* workspace,
                                  const DoneFlags& done, cudaStream_t stream) {
  if (lengths.size.num_sequences <= kMostFusedSequences) return cudaErrorInvalidValue;
  const OnHost host = {
      .extend_seq_lens = lengths.extend_seq_lens, .seq_lens = lengths.seq_lens, .copies = copies};
  DeviceLengths on_device = lengths;
  on_device.extend_seq_lens = copies;
  on_device.seq_lens = copies + lengths.size.num_sequences;
  return LaunchChunked(kernel, on_device, host, /*total_tokens=*/nullptr, workspace, done, stream);
}

}  // namespace nsa::metadata::kernels::cuda
