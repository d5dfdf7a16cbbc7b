#include "tests/support/golden.h"

#include <google/protobuf/reflection.h>
#include <google/protobuf/util/json_util.h>

#include <cstdlib>
#include <fstream>
#include <iostream>

#include "kernels/measure.h"
#include "tests/golden/golden.pb.h"

namespace nsa::metadata::testing {
namespace {

GoldenCase Parse(const std::string& line) {
  Golden json;
  const auto status = google::protobuf::util::JsonStringToMessage(line, &json);
  if (!status.ok()) {
    std::cerr << NSA_GOLDEN_FILE << ": " << status.ToString() << "\n";
    std::exit(EXIT_FAILURE);
  }
  GoldenCase golden;
  golden.name = json.name();
  golden.extend_seq_lens.assign(json.extend_seq_lens().begin(), json.extend_seq_lens().end());
  golden.seq_lens.assign(json.seq_lens().begin(), json.seq_lens().end());
  golden.nsa_index_topk = json.nsa_index_topk();
  golden.mode = json.mode() == "CAUSAL" ? kernels::SequenceMode::kCausal : kernels::SequenceMode::kRepeat;
  const int64_t num_sequences = json.seq_lens_size();
  const int64_t total_tokens = kernels::Sum(golden.extend_seq_lens);
  for (kernels::Output output : kernels::kAllOutputs) {
    const auto* field = Golden::Expected::descriptor()->FindFieldByName(kernels::OutputName(output));
    const auto values = json.expected().GetReflection()->GetRepeatedFieldRef<int32_t>(json.expected(), field);
    // Only an array that has values can have one that passes int32.
    if (values.empty() && kernels::OutputLength(output, num_sequences, total_tokens) > 0) continue;
    golden.expected[static_cast<size_t>(output)].emplace(values.begin(), values.end());
  }
  return golden;
}

}  // namespace

const std::vector<GoldenCase>& GoldenCases() {
  static const auto* cases = [] {
    auto* all = new std::vector<GoldenCase>;
    // An installed test is told where the file is.
    const char* installed = std::getenv("NSA_GOLDEN_FILE");
    std::ifstream file(installed != nullptr ? installed : NSA_GOLDEN_FILE);
    for (std::string line; std::getline(file, line);) all->push_back(Parse(line));
    if (all->empty()) {
      std::cerr << NSA_GOLDEN_FILE << " is missing or empty\n";
      std::exit(EXIT_FAILURE);
    }
    return all;
  }();
  return *cases;
}

}  // namespace nsa::metadata::testing
