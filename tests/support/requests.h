// Requests for tests: drawn from a seed, and expanded alone by a backend.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/packed_batch.h"

namespace nsa::metadata::testing {

// Lengths and what is asked of them.
struct TestRequest {
  kernels::RequestSpec spec;
  std::vector<int32_t> extend_seq_lens;
  std::vector<int32_t> seq_lens;

  int64_t total_tokens() const;
};

using Arrays = std::array<std::vector<int32_t>, kernels::kNumOutputs>;

// A valid request of up to `max_sequences` sequences and some thousand tokens at most: both modes, K from 1, any
// outputs, zero lengths, sequences shorter than their extension, and now and then sums next to int32's end.
TestRequest RandomRequest(std::mt19937_64& random, int64_t max_sequences = 64);

// Memory for the asked outputs of a request, filled with a marker that no test's answer holds, and as much again behind
// each.
class MarkedOutputs {
 public:
  static constexpr int32_t kMarker = -0x5a5a5a5b;

  MarkedOutputs(const TestRequest& request);
  kernels::OutputPointers pointers();
  // The outputs; an output that was not asked is empty.
  Arrays Values() const;
  // Whether anything behind an output's end was written.
  bool WrittenPastTheEnd() const;

 private:
  std::array<std::vector<int32_t>, kernels::kNumOutputs> memory_;
  std::array<size_t, kernels::kNumOutputs> lengths_ = {};
};

// Expands requests in one batch of `lane`. Fails the test when the lane reports an error or writes past an output's
// end.
std::vector<Arrays> ExpandTogether(kernels::Lane& lane, const std::vector<TestRequest>& requests);

}  // namespace nsa::metadata::testing
