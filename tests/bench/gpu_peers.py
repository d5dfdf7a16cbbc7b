"""What one writes in PyTorch for the same arrays, on the same card: lengths on the device where that helps, results on the
device, launch and synchronisation included. Beside it nsa_metadata.local, where it is installed. One JSON object a line,
as gpu_step's."""

import json
import random
import statistics
import time

import torch
import triton
import triton.language as tl
from torch.utils.cpp_extension import load_inline

try:
    from nsa_metadata import local
except ImportError:
    local = None

TOP_K = 2048
MEAN = 16
ROUNDS = 9

FOUNDING = r"""
#include <torch/extension.h>
#include <ATen/cuda/CUDAContext.h>

constexpr int kThreads = 256;

__global__ void Linear(const int* q, const int* s, int n, int total, int k, int* expanded, int* cache) {
  const int t = blockIdx.x * kThreads + threadIdx.x;
  if (t >= total) return;
  int end = 0;
  for (int b = 0; b < n; ++b) {
    end += q[b];
    if (t < end) {
      expanded[t] = s[b];
      cache[t] = min(s[b], k);
      return;
    }
  }
}

__global__ void Binary(const int* ends, const int* s, int n, int total, int k, int* expanded, int* cache) {
  const int t = blockIdx.x * kThreads + threadIdx.x;
  if (t >= total) return;
  int low = 0, high = n - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (t < ends[middle]) high = middle; else low = middle + 1;
  }
  expanded[t] = s[low];
  cache[t] = min(s[low], k);
}

std::vector<torch::Tensor> expand(torch::Tensor q, torch::Tensor s, int64_t total, int64_t k) {
  auto expanded = torch::empty({total}, q.options());
  auto cache = torch::empty({total}, q.options());
  const int n = q.size(0);
  const int blocks = (total + kThreads - 1) / kThreads;
  auto stream = at::cuda::getCurrentCUDAStream();
  if (n <= 16) {
    Linear<<<blocks, kThreads, 0, stream>>>(q.data_ptr<int>(), s.data_ptr<int>(), n, total, k,
                                            expanded.data_ptr<int>(), cache.data_ptr<int>());
  } else {
    auto ends = torch::cumsum(q, 0, torch::kInt32);
    Binary<<<blocks, kThreads, 0, stream>>>(ends.data_ptr<int>(), s.data_ptr<int>(), n, total, k,
                                            expanded.data_ptr<int>(), cache.data_ptr<int>());
  }
  return {expanded, cache};
}
"""


@triton.jit
def expand_kernel(ends, lengths, expanded, cache, num_sequences, total, top_k, BLOCK: tl.constexpr, STEPS: tl.constexpr):
    t = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = t < total
    low = tl.zeros((BLOCK,), tl.int32)
    high = tl.zeros((BLOCK,), tl.int32) + num_sequences - 1
    for _ in range(STEPS):
        middle = (low + high) // 2
        before = t < tl.load(ends + middle, mask=inside, other=0)
        high = tl.where(before, middle, high)
        low = tl.where(before, low, tl.minimum(middle + 1, high))
    value = tl.load(lengths + low, mask=inside, other=0)
    tl.store(expanded + t, value, mask=inside)
    tl.store(cache + t, tl.minimum(value, top_k), mask=inside)


def plain(q, s, _q, _s, _total):
    expanded = torch.cat([torch.full((n,), length, dtype=torch.int32, device="cuda") for n, length in zip(q, s)])
    return expanded, expanded.clamp(max=TOP_K)


def repeat_interleave(_q, _s, q, s, total):
    expanded = torch.repeat_interleave(s, q, output_size=total)
    return expanded, expanded.clamp(max=TOP_K)


def by_triton(_q, _s, q, s, total):
    ends = torch.cumsum(q, 0, dtype=torch.int32)
    expanded, cache = torch.empty(total, dtype=torch.int32, device="cuda"), torch.empty(
        total, dtype=torch.int32, device="cuda"
    )
    steps = max(len(_q).bit_length(), 1)
    expand_kernel[(triton.cdiv(total, 256),)](ends, s, expanded, cache, len(_q), total, TOP_K, BLOCK=256, STEPS=steps)
    return expanded, cache


def by_local(_q, _s, q, s, total):
    expanded, cache = (torch.empty(total, dtype=torch.int32, device="cuda") for _ in range(2))
    local.fill_draft_extend_metadata_adaptive(q, s, TOP_K, expanded, cache, mode="repeat")
    return expanded, cache


def by_local_launched(_q, _s, q, s, total):
    expanded, cache = (torch.empty(total, dtype=torch.int32, device="cuda") for _ in range(2))
    local.fill_draft_extend_metadata_adaptive(q, s, TOP_K, expanded, cache, mode="repeat", synchronize=False)
    return expanded, cache


class InPlace:
    """Into the same arrays again and again, as an engine does."""

    def __init__(self):
        self._arrays = {}

    def __call__(self, _q, _s, q, s, total):
        if total not in self._arrays:
            self._arrays[total] = [torch.empty(total, dtype=torch.int32, device="cuda") for _ in range(2)]
        expanded, cache = self._arrays[total]
        local.fill_draft_extend_metadata_adaptive(q, s, TOP_K, expanded, cache, mode="repeat")
        return expanded, cache


def median_us(run, times):
    took = []
    for _ in range(times):
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        took.append(1e6 * (time.perf_counter() - begin))
    return statistics.median(took)


def main():
    extension = load_inline(
        "founding", cpp_sources="std::vector<torch::Tensor> expand(torch::Tensor, torch::Tensor, int64_t, int64_t);",
        cuda_sources=FOUNDING, functions=["expand"], verbose=False,
    )
    peers = {
        "plain": plain,
        "repeat_interleave": repeat_interleave,
        "triton": by_triton,
        "founding_extension": lambda _q, _s, q, s, total: extension.expand(q, s, total, TOP_K),
    }
    ours = {}
    if local is not None:
        ours = {"local": by_local, "local_in_place": InPlace(), "local_launched": by_local_launched}
    every = {**peers, **ours}
    print(json.dumps({"section": "software", "torch": torch.__version__, "triton": triton.__version__}))
    for num_sequences in (1, 4, 16, 64, 256, 1024):
        rng = random.Random(num_sequences)
        q = [rng.randint(1, 2 * MEAN - 1) for _ in range(num_sequences)]
        s = [n + rng.randrange(8192) for n in q]
        arguments = (q, s, *(torch.tensor(x, dtype=torch.int32, device="cuda") for x in (q, s)), sum(q))
        want = [length for n, length in zip(q, s) for _ in range(n)]
        for name, peer in every.items():
            expanded, cache = peer(*arguments)
            assert expanded.tolist() == want and cache.tolist() == [min(x, TOP_K) for x in want], name
        rounds = {name: [] for name in every}
        for _ in range(ROUNDS):
            for name, peer in every.items():
                rounds[name].append(median_us(lambda: peer(*arguments), 5 if name == "plain" else 50))
        us = {name: statistics.median(values) for name, values in rounds.items()}
        for section, names in (("peers", peers), ("local", ours)):
            if names:
                of = {name: us[name] for name in names}
                print(json.dumps({"section": section, "num_sequences": num_sequences, "mean": MEAN, "tokens": sum(q), "us": of}), flush=True)


if __name__ == "__main__":
    main()
