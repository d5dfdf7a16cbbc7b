"""What one writes in PyTorch for the same arrays, on the same card: lengths on the device where that helps, results on the
device, launch and synchronisation included. Beside it nsa_metadata.local, where it is installed. One JSON object a line,
as gpu_step's, whose program gives FillDraftExtendMetadata's time in turn with theirs (NSA_METADATA_BUILD, as in harness.py)."""

import json
import random
import statistics
import subprocess
import time

import torch
import triton
import triton.language as tl
from torch.utils.cpp_extension import load_inline

from harness import program

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

void expand_into(torch::Tensor q, torch::Tensor s, int64_t total, int64_t k, torch::Tensor expanded, torch::Tensor cache) {
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
}

std::vector<torch::Tensor> expand(torch::Tensor q, torch::Tensor s, int64_t total, int64_t k) {
  auto expanded = torch::empty({total}, q.options());
  auto cache = torch::empty({total}, q.options());
  expand_into(q, s, total, k, expanded, cache);
  return {expanded, cache};
}
"""
DECLARED = """
std::vector<torch::Tensor> expand(torch::Tensor, torch::Tensor, int64_t, int64_t);
void expand_into(torch::Tensor, torch::Tensor, int64_t, int64_t, torch::Tensor, torch::Tensor);
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


def made(total):
    return [torch.empty(total, dtype=torch.int32, device="cuda") for _ in range(2)]


def by_triton_into(_q, q, s, total, expanded, cache):
    ends = torch.cumsum(q, 0, dtype=torch.int32)
    steps = max(len(_q).bit_length(), 1)
    expand_kernel[(triton.cdiv(total, 256),)](ends, s, expanded, cache, len(_q), total, TOP_K, BLOCK=256, STEPS=steps)


def by_triton(_q, _s, q, s, total):
    expanded, cache = made(total)
    by_triton_into(_q, q, s, total, expanded, cache)
    return expanded, cache


def median_us(run, times, waits=False):
    """`waits`: it is over when it returns. What isn't is waited for by the quickest that Python has."""
    took = []
    stream = torch.cuda.current_stream()
    for _ in range(times):
        begin = time.perf_counter()
        run()
        if not waits:
            stream.synchronize()
        took.append(1e6 * (time.perf_counter() - begin))
    return statistics.median(took)


def checked(name, expanded, cache, want):
    assert expanded.tolist() == want and cache.tolist() == [min(x, TOP_K) for x in want], name


def measured(runs, times, waiting=(), beside=None):
    """The median of the rounds' medians of each, side by side; `beside` maps names to what returns a median itself."""
    rounds = {name: [] for name in (*runs, *(beside or {}))}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            rounds[name].append(median_us(run, times.get(name, 50), name in waiting))
        for name, median in (beside or {}).items():
            rounds[name].append(median())
    return {name: statistics.median(values) for name, values in rounds.items()}


class Fill:
    """FillDraftExtendMetadataAdaptive, in a process of its own."""

    def __init__(self):
        self._process = subprocess.Popen([program("tests/bench", "gpu_step"), "fill"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def us(self, num_sequences):
        self._process.stdin.write(f"{num_sequences} {MEAN}\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if not line.startswith("{"):  # the card
                return float(line)
        raise RuntimeError(f"gpu_step ended with {self._process.wait()}")

    def end(self):
        self._process.stdin.close()
        self._process.wait()


def main():
    extension = load_inline("founding", cpp_sources=DECLARED, cuda_sources=FOUNDING, functions=["expand", "expand_into"], verbose=False)
    peers = {
        "plain": plain,
        "repeat_interleave": repeat_interleave,
        "triton": by_triton,
        "founding_extension": lambda _q, _s, q, s, total: extension.expand(q, s, total, TOP_K),
    }
    fill_alone = Fill()
    print(json.dumps({"section": "software", "torch": torch.__version__, "triton": triton.__version__}))
    for num_sequences in (1, 4, 16, 64, 256, 1024):
        rng = random.Random(num_sequences)
        q = [rng.randint(1, 2 * MEAN - 1) for _ in range(num_sequences)]
        s = [n + rng.randrange(8192) for n in q]
        on_q, on_s = (torch.tensor(x, dtype=torch.int32, device="cuda") for x in (q, s))
        total = sum(q)
        want = [length for n, length in zip(q, s) for _ in range(n)]
        shape = {"num_sequences": num_sequences, "mean": MEAN, "tokens": total}
        arguments = (q, s, on_q, on_s, total)
        for name, peer in peers.items():
            checked(name, *peer(*arguments), want)
        anew = {name: lambda peer=peer: peer(*arguments) for name, peer in peers.items()}
        us = measured(anew, {"plain": 5}, beside={"fill": lambda: fill_alone.us(num_sequences)})
        print(json.dumps({"section": "peers", **shape, "us": us}), flush=True)
        if local is None:
            continue
        fill = local.fill_draft_extend_metadata_adaptive
        # Into the same arrays again and again, as an engine does; but plain Python makes its own.
        expanded, cache = made(total)
        into = {
            "plain": anew["plain"],
            "triton": lambda: by_triton_into(q, on_q, on_s, total, expanded, cache),
            "founding_extension": lambda: extension.expand_into(on_q, on_s, total, TOP_K, expanded, cache),
            "local": lambda: fill(on_q, on_s, TOP_K, expanded, cache, mode="repeat"),
            "local_launched": lambda: fill(on_q, on_s, TOP_K, expanded, cache, mode="repeat", synchronize=False),
            "local_made": lambda: fill(on_q, on_s, TOP_K, *made(total), mode="repeat"),
            "synchronize": lambda: None,
        }
        for name in ("triton", "founding_extension", "local", "local_launched"):
            expanded.zero_(), cache.zero_()
            into[name]()
            checked(name, expanded, cache, want)
        us = measured(into, {"plain": 5}, waiting=("local", "local_made"))
        print(json.dumps({"section": "local", **shape, "us": us}), flush=True)
    fill_alone.end()


if __name__ == "__main__":
    main()
