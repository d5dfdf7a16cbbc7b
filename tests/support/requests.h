// Requests for tests: drawn from a seed, and expanded alone by a backend.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <random>
#include <vector>

#include "kernels/backend.h"
#include "kernels/request_batch.h"

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

// A valid causal request of so many sequences of 0 to 3 tokens and lengths of 0 to 11.
TestRequest ShortSequences(std::mt19937_64& random, size_t num_sequences, kernels::OutputSet outputs);

// A valid causal request of at least `least_tokens` tokens: runs of sequences without tokens, of a few, of some ten,
// some hundred and some thousand, a part of them shorter than their extension.
TestRequest MixedSequences(std::mt19937_64& random, int64_t least_tokens, kernels::OutputSet outputs);

// A valid request of so many sequences of 0 to 2 * `mean` tokens.
TestRequest SequencesOf(std::mt19937_64& random, size_t num_sequences, int64_t mean, kernels::OutputSet outputs);

// A valid causal request of 41,000 sequences and two million tokens, nearly all of which are of a thousand sequences in
// the middle.
TestRequest LopsidedSequences(std::mt19937_64& random, kernels::OutputSet outputs);

// A value that no test's answer holds.
inline constexpr int32_t kMarker = -0x5a5a5a5b;

// Expands requests directly on a lane of a backend. Every output's memory is filled with kMarker first, and as much
// again behind it.
class Expander {
 public:
  // Ends the test program when the backend can't make a lane or memory.
  explicit Expander(kernels::Backend& backend);

  // Expands the requests in one batch. Fails the test when the lane reports an error or writes past an output's end.
  std::vector<Arrays> Together(const std::vector<TestRequest>& requests);
  Arrays Alone(const TestRequest& request) { return Together({request}).front(); }

 private:
  int32_t* Take(size_t values);

  std::unique_ptr<kernels::Lane> lane_;
  kernels::HostBuffer memory_;
  size_t used_ = 0;  // of memory_, in values
};

// The plain answer.
Arrays ReferenceArrays(const TestRequest& request);

}  // namespace nsa::metadata::testing
