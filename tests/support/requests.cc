#include "tests/support/requests.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>

#include "kernels/measure.h"

namespace nsa::metadata::testing {
namespace {

using kernels::Output;

int32_t Draw(std::mt19937_64& random, int64_t least, int64_t most) {
  return static_cast<int32_t>(std::uniform_int_distribution<int64_t>(least, most)(random));
}

}  // namespace

int64_t TestRequest::total_tokens() const { return kernels::Sum(extend_seq_lens); }

TestRequest RandomRequest(std::mt19937_64& random, int64_t max_sequences) {
  TestRequest request;
  const int64_t sequences = Draw(random, 0, max_sequences);
  // Row lengths from all zero to some hundred: each has code of its own.
  const int64_t longest_row = std::array<int64_t, 4>{1, 8, 40, 300}[Draw(random, 0, 3)];
  const int64_t longest_sequence = std::array<int64_t, 3>{16, 5'000, 100'000}[Draw(random, 0, 2)];
  for (int64_t b = 0; b < sequences; ++b) {
    request.extend_seq_lens.push_back(Draw(random, 0, 3) == 0 ? 0 : Draw(random, 0, longest_row));
    request.seq_lens.push_back(Draw(random, 0, longest_sequence));
  }
  if (sequences > 0 && Draw(random, 0, 15) == 0) {
    // One sequence that takes the sums to int32's end.
    const int64_t rest = kernels::Sum(request.seq_lens) - request.seq_lens.back();
    request.seq_lens.back() = static_cast<int32_t>(INT32_MAX - rest);
  }
  request.spec.mode = Draw(random, 0, 1) == 0 ? kernels::SequenceMode::kRepeat : kernels::SequenceMode::kCausal;
  request.spec.nsa_index_topk = Draw(random, 0, 1) == 0 ? 2048 : Draw(random, 1, 64);
  for (Output output : kernels::kAllOutputs) {
    if (Draw(random, 0, 2) > 0) request.spec.outputs.Add(output);
  }
  return request;
}

TestRequest ShortSequences(std::mt19937_64& random, size_t num_sequences, kernels::OutputSet outputs) {
  TestRequest request{.spec = {.nsa_index_topk = 5, .mode = kernels::SequenceMode::kCausal, .outputs = outputs},
                      .extend_seq_lens = {},
                      .seq_lens = {}};
  for (size_t b = 0; b < num_sequences; ++b) {
    request.extend_seq_lens.push_back(static_cast<int32_t>(random() % 4));
    request.seq_lens.push_back(static_cast<int32_t>(random() % 12));
  }
  return request;
}

TestRequest MixedSequences(std::mt19937_64& random, int64_t least_tokens, kernels::OutputSet outputs) {
  struct Kind {
    int64_t shortest;
    int64_t longest;
    int64_t most_in_a_run;
  };
  constexpr Kind kKinds[] = {{0, 0, 200}, {1, 5, 200}, {20, 60, 200}, {100, 700, 200}, {3'000, 20'000, 3}};
  TestRequest request{.spec = {.nsa_index_topk = 2048, .mode = kernels::SequenceMode::kCausal, .outputs = outputs},
                      .extend_seq_lens = {},
                      .seq_lens = {}};
  for (int64_t tokens = 0; tokens < least_tokens;) {
    const Kind& kind = kKinds[Draw(random, 0, std::size(kKinds) - 1)];
    for (int64_t left = Draw(random, 1, kind.most_in_a_run); left > 0; --left) {
      request.extend_seq_lens.push_back(Draw(random, kind.shortest, kind.longest));
      const int32_t q = request.extend_seq_lens.back();
      request.seq_lens.push_back(Draw(random, 0, 3) == 0 ? Draw(random, 0, q) : q + Draw(random, 0, 9));
      tokens += request.extend_seq_lens.back();
    }
  }
  return request;
}

TestRequest SequencesOf(std::mt19937_64& random, size_t num_sequences, int64_t mean, kernels::OutputSet outputs) {
  TestRequest request{.spec = {.nsa_index_topk = 64, .mode = kernels::SequenceMode::kRepeat, .outputs = outputs},
                      .extend_seq_lens = {},
                      .seq_lens = {}};
  for (size_t b = 0; b < num_sequences; ++b) {
    request.extend_seq_lens.push_back(Draw(random, 0, 2 * mean));
    request.seq_lens.push_back(Draw(random, 0, 100));
  }
  return request;
}

TestRequest LopsidedSequences(std::mt19937_64& random, kernels::OutputSet outputs) {
  TestRequest request{.spec = {.nsa_index_topk = 64, .mode = kernels::SequenceMode::kCausal, .outputs = outputs},
                      .extend_seq_lens = {},
                      .seq_lens = {}};
  for (size_t b = 0; b < 41'000; ++b) {
    const bool is_long = b >= 20'000 && b < 21'000;
    request.extend_seq_lens.push_back(is_long ? Draw(random, 1, 4'600) : Draw(random, 0, 3));
    request.seq_lens.push_back(Draw(random, 0, 9'000));
  }
  return request;
}

Expander::Expander(kernels::Backend& backend)
    : lane_(*backend.CreateLane({.max_sequences = 70'000, .max_requests = 1'000})),
      memory_(*backend.AllocateOutput(size_t{256} << 20)) {}

int32_t* Expander::Take(size_t values) {
  int32_t* taken = reinterpret_cast<int32_t*>(memory_.data()) + used_;
  used_ += (values + 31) / 32 * 32;  // as a reply's arrays are aligned
  EXPECT_LE(used_ * sizeof(int32_t), memory_.bytes()) << "the test's memory is too small";
  return taken;
}

std::vector<Arrays> Expander::Together(const std::vector<TestRequest>& requests) {
  used_ = 0;
  lane_->batch().Clear();
  std::vector<kernels::OutputPointers> pointers(requests.size());
  std::vector<std::array<size_t, kernels::kNumOutputs>> lengths(requests.size());
  for (size_t r = 0; r < requests.size(); ++r) {
    const TestRequest& request = requests[r];
    for (Output output : kernels::kAllOutputs) {
      if (!request.spec.outputs.Has(output)) continue;
      const size_t i = static_cast<size_t>(output);
      const size_t length =
          kernels::OutputLength(output, static_cast<int64_t>(request.seq_lens.size()), request.total_tokens());
      lengths[r][i] = length;
      pointers[r][i] = Take(2 * length + 16);
      std::fill_n(pointers[r][i], 2 * length + 16, kMarker);
    }
    EXPECT_TRUE(lane_->batch().Add(request.spec, request.extend_seq_lens, request.seq_lens, request.total_tokens(),
                                   pointers[r]));
  }
  const absl::StatusOr<kernels::Kernel> ran = lane_->Expand();
  EXPECT_TRUE(ran.ok()) << ran.status();
  std::vector<Arrays> arrays(requests.size());
  for (size_t r = 0; r < requests.size(); ++r) {
    for (size_t i = 0; i < kernels::kNumOutputs; ++i) {
      const int32_t* begin = pointers[r][i];
      if (begin == nullptr) continue;
      const int32_t* end = begin + lengths[r][i];
      EXPECT_TRUE(std::all_of(end, end + lengths[r][i] + 16, [](int32_t value) { return value == kMarker; }))
          << "request " << r << ": " << kernels::OutputName(static_cast<Output>(i)) << " was written past its end";
      arrays[r][i].assign(begin, end);
    }
  }
  return arrays;
}

Arrays ReferenceArrays(const TestRequest& request) {
  static kernels::Backend& backend = *kernels::CreateReferenceBackend().release();
  thread_local Expander expander(backend);
  return expander.Alone(request);
}

}  // namespace nsa::metadata::testing
