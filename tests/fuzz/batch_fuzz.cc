// Requests of all kinds, put into one batch as far as it takes them: each one's arrays are the reference's, and what
// lies between them is untouched.

#include <algorithm>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "tests/fuzz/check.h"
#include "tests/support/requests.h"

namespace nsa::metadata {
namespace {

using testing::Check;

constexpr int64_t kMaxSequences = 48;
constexpr int64_t kMaxRequests = 6;
constexpr int32_t kUntouched = -77;

// Numbers from the input, and 0 after its end.
class Numbers {
 public:
  Numbers(const uint8_t* data, size_t size) : data_(data), size_(size) {}
  bool done() const { return size_ == 0; }
  uint8_t Next() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

testing::TestRequest ReadRequest(Numbers& numbers) {
  testing::TestRequest request;
  request.spec.mode = numbers.Next() & 1 ? kernels::SequenceMode::kCausal : kernels::SequenceMode::kRepeat;
  request.spec.nsa_index_topk = 1 + numbers.Next();
  const unsigned outputs = numbers.Next() | numbers.Next() << 8;
  for (const kernels::Output output : kernels::kAllOutputs) {
    if (outputs >> static_cast<unsigned>(output) & 1) request.spec.outputs.Add(output);
  }
  const int num_sequences = numbers.Next() % 32;
  for (int b = 0; b < num_sequences; ++b) {
    request.extend_seq_lens.push_back(numbers.Next());
    request.seq_lens.push_back(numbers.Next() * (1 + numbers.Next()));
  }
  return request;
}

}  // namespace
}  // namespace nsa::metadata

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nsa::metadata;  // NOLINT: a function outside of it
  static const std::unique_ptr<kernels::Backend> backend = kernels::CreateCpuBackend();
  static const std::unique_ptr<kernels::Lane> lane =
      *backend->CreateLane({.max_sequences = kMaxSequences, .max_requests = kMaxRequests});
  Numbers numbers(data, size);
  std::vector<testing::TestRequest> requests;
  std::vector<std::vector<int32_t>> memories;  // one array after another, with a value between them
  int64_t sequences = 0;
  lane->batch().Clear();
  while (!numbers.done()) {
    testing::TestRequest request = ReadRequest(numbers);
    const auto num_sequences = static_cast<int64_t>(request.seq_lens.size());
    std::vector<int32_t> memory(1, kUntouched);
    std::vector<std::pair<kernels::Output, size_t>> places;
    request.spec.outputs.ForEach([&](kernels::Output output) {
      places.emplace_back(output, memory.size());
      memory.resize(memory.size() + OutputLength(output, num_sequences, request.total_tokens()) + 1, kUntouched);
    });
    kernels::OutputPointers pointers = {};
    for (const auto& [output, place] : places) pointers[static_cast<size_t>(output)] = memory.data() + place;
    const bool fits = sequences + num_sequences <= kMaxSequences && requests.size() < kMaxRequests;
    const bool added =
        lane->batch().Add(request.spec, request.extend_seq_lens, request.seq_lens, request.total_tokens(), pointers);
    testing::Check(added == fits, "a batch takes what fits it, and nothing else");
    if (!added) break;
    sequences += num_sequences;
    requests.push_back(std::move(request));
    memories.push_back(std::move(memory));
  }
  if (requests.empty()) return 0;
  testing::Check(lane->Expand().ok(), "the CPU expands it");
  for (size_t i = 0; i < requests.size(); ++i) {
    const testing::Arrays want = testing::ReferenceArrays(requests[i]);
    std::vector<int32_t> whole(1, kUntouched);
    requests[i].spec.outputs.ForEach([&](kernels::Output output) {
      const std::vector<int32_t>& array = want[static_cast<size_t>(output)];
      whole.insert(whole.end(), array.begin(), array.end());
      whole.push_back(kUntouched);
    });
    testing::Check(memories[i] == whole, "request " + std::to_string(i) + " has the reference's arrays");
  }
  return 0;
}
