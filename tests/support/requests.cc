#include "tests/support/requests.h"

#include <gtest/gtest.h>

#include <algorithm>

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

MarkedOutputs::MarkedOutputs(const TestRequest& request) {
  for (Output output : kernels::kAllOutputs) {
    if (!request.spec.outputs.Has(output)) continue;
    const size_t i = static_cast<size_t>(output);
    lengths_[i] = kernels::OutputLength(output, static_cast<int64_t>(request.seq_lens.size()), request.total_tokens());
    memory_[i].assign(2 * lengths_[i] + 16, kMarker);
  }
}

kernels::OutputPointers MarkedOutputs::pointers() {
  kernels::OutputPointers pointers = {};
  for (size_t i = 0; i < memory_.size(); ++i) pointers[i] = memory_[i].empty() ? nullptr : memory_[i].data();
  return pointers;
}

Arrays MarkedOutputs::Values() const {
  Arrays values;
  for (size_t i = 0; i < memory_.size(); ++i) values[i].assign(memory_[i].begin(), memory_[i].begin() + lengths_[i]);
  return values;
}

bool MarkedOutputs::WrittenPastTheEnd() const {
  for (size_t i = 0; i < memory_.size(); ++i) {
    if (std::any_of(memory_[i].begin() + lengths_[i], memory_[i].end(), [](int32_t v) { return v != kMarker; }))
      return true;
  }
  return false;
}

std::vector<Arrays> ExpandTogether(kernels::Lane& lane, const std::vector<TestRequest>& requests) {
  std::vector<MarkedOutputs> outputs;
  lane.batch().Clear();
  for (const TestRequest& request : requests) {
    MarkedOutputs& out = outputs.emplace_back(request);
    EXPECT_TRUE(lane.batch().Add(request.spec, request.extend_seq_lens, request.seq_lens, request.total_tokens(),
                                 out.pointers()));
  }
  const absl::Status status = lane.Expand();
  EXPECT_TRUE(status.ok()) << status;
  std::vector<Arrays> arrays;
  for (const MarkedOutputs& out : outputs) {
    EXPECT_FALSE(out.WrittenPastTheEnd()) << "request " << arrays.size() << " of " << requests.size();
    arrays.push_back(out.Values());
  }
  return arrays;
}

}  // namespace nsa::metadata::testing
