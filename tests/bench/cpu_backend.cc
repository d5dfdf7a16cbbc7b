// cpu_backend: the CPU's expansion of one batch on one core, beside memset over the same memory. See cpu.py.

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "kernels/backend.h"

namespace nsa::metadata::bench {
namespace {

using kernels::Output;

// Two outputs of so many tokens, in memory that has been touched.
class Batch {
 public:
  Batch(int64_t mean, int64_t tokens)
      : memory_(*backend_->AllocateOutput(static_cast<size_t>(tokens) * 2 * sizeof(int32_t))) {
    std::mt19937_64 random(mean);
    for (int64_t left = tokens; left > 0;) {
      const auto q = static_cast<int32_t>(std::min<int64_t>(1 + random() % (2 * mean - 1), left));
      q_.push_back(q);
      s_.push_back(q + static_cast<int32_t>(random() % 8192));
      left -= q;
    }
    lane_ = *backend_->CreateLane({.max_sequences = static_cast<int64_t>(q_.size()), .max_requests = 1});
    memset(memory_.data(), 1, bytes());
    auto* out = reinterpret_cast<int32_t*>(memory_.data());
    lane_->batch().Add({.nsa_index_topk = 2048,
                        .mode = kernels::SequenceMode::kCausal,
                        .outputs = {Output::kSeqlensExpanded, Output::kNsaCacheSeqlens}},
                       q_, s_, tokens, {out, out + tokens});
  }

  kernels::Lane& lane() { return *lane_; }
  uint8_t* data() { return memory_.data(); }
  size_t bytes() const { return memory_.bytes(); }

 private:
  std::unique_ptr<kernels::Backend> backend_ = kernels::CreateCpuBackend();
  std::vector<int32_t> q_;
  std::vector<int32_t> s_;
  std::unique_ptr<kernels::Lane> lane_;
  kernels::HostBuffer memory_;
};

void Expand(benchmark::State& state) {
  Batch batch(state.range(0), state.range(1));
  for (auto _ : state) {
    if (!batch.lane().Expand().ok()) state.SkipWithError("the lane failed");
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(batch.bytes()));
}

void Memset(benchmark::State& state) {
  Batch batch(state.range(0), state.range(1));
  for (auto _ : state) {
    memset(batch.data(), 1, batch.bytes());
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(state.iterations() * static_cast<int64_t>(batch.bytes()));
}

void Shapes(benchmark::internal::Benchmark* benchmark) {
  for (int64_t tokens : {1 << 10, 1 << 14, 1 << 18, 1 << 20}) {
    for (int64_t mean : {4, 64, 1'024, 16'384}) {
      if (mean <= tokens) benchmark->Args({mean, tokens});
    }
  }
}

BENCHMARK(Expand)->Apply(Shapes);
BENCHMARK(Memset)->Apply(Shapes);

}  // namespace
}  // namespace nsa::metadata::bench

BENCHMARK_MAIN();
