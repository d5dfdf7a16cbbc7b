// What this project was founded on, to measure against: a thread a token, 256 threads a block; linear search over the
// lengths up to 16 sequences, above that a prefix sum and binary search over it; two outputs.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cub/device/device_scan.cuh>

namespace nsa::metadata::bench::founding {

constexpr int kThreads = 256;
constexpr int32_t kLinearUpTo = 16;

// Device memory.
struct Arrays {
  const int32_t* extend_seq_lens;  // [num_sequences]
  const int32_t* seq_lens;         // [num_sequences]
  int32_t num_sequences;
  int32_t total_tokens;
  int32_t nsa_index_topk;
  int32_t* seqlens_expanded;   // [total_tokens]
  int32_t* nsa_cache_seqlens;  // [total_tokens]
  int32_t* ends;               // [num_sequences], room for the prefix sum
  void* scratch;
  size_t scratch_bytes;
};

__device__ inline void Write(const Arrays& a, int32_t t, int32_t b) {
  a.seqlens_expanded[t] = a.seq_lens[b];
  a.nsa_cache_seqlens[t] = min(a.seq_lens[b], a.nsa_index_topk);
}

__global__ inline void Linear(Arrays a) {
  const int32_t t = blockIdx.x * kThreads + threadIdx.x;
  if (t >= a.total_tokens) return;
  int32_t end = 0;
  for (int32_t b = 0; b < a.num_sequences; ++b) {
    end += a.extend_seq_lens[b];
    if (t < end) {
      Write(a, t, b);
      return;
    }
  }
}

__global__ inline void Binary(Arrays a) {
  const int32_t t = blockIdx.x * kThreads + threadIdx.x;
  if (t >= a.total_tokens) return;
  int32_t low = 0;
  int32_t high = a.num_sequences - 1;
  while (low < high) {
    const int32_t middle = (low + high) / 2;
    if (t < a.ends[middle]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  Write(a, t, low);
}

inline size_t ScratchBytes(int32_t num_sequences) {
  size_t bytes = 0;
  cub::DeviceScan::InclusiveSum(nullptr, bytes, static_cast<const int32_t*>(nullptr), static_cast<int32_t*>(nullptr),
                                num_sequences);
  return bytes;
}

inline cudaError_t LaunchAdaptive(const Arrays& a, cudaStream_t stream) {
  const unsigned blocks = static_cast<unsigned>((a.total_tokens + kThreads - 1) / kThreads);
  if (a.num_sequences <= kLinearUpTo) {
    Linear<<<blocks, kThreads, 0, stream>>>(a);
    return cudaGetLastError();
  }
  size_t bytes = a.scratch_bytes;
  const cudaError_t error =
      cub::DeviceScan::InclusiveSum(a.scratch, bytes, a.extend_seq_lens, a.ends, a.num_sequences, stream);
  if (error != cudaSuccess) return error;
  Binary<<<blocks, kThreads, 0, stream>>>(a);
  return cudaGetLastError();
}

}  // namespace nsa::metadata::bench::founding
