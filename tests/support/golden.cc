#include "tests/support/golden.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <cstdlib>
#include <fstream>
#include <iostream>

namespace nsa::metadata::testing {
namespace {

std::vector<int32_t> Numbers(const google::protobuf::Value& value) {
  std::vector<int32_t> numbers;
  for (const auto& number : value.list_value().values()) numbers.push_back(static_cast<int32_t>(number.number_value()));
  return numbers;
}

GoldenCase Parse(const std::string& line) {
  google::protobuf::Struct json;
  const auto status = google::protobuf::util::JsonStringToMessage(line, &json);
  if (!status.ok()) {
    std::cerr << NSA_GOLDEN_FILE << ": " << status.ToString() << "\n";
    std::exit(EXIT_FAILURE);
  }
  const auto& fields = json.fields();
  GoldenCase golden;
  golden.name = fields.at("name").string_value();
  golden.extend_seq_lens = Numbers(fields.at("extend_seq_lens"));
  golden.seq_lens = Numbers(fields.at("seq_lens"));
  golden.nsa_index_topk = static_cast<int32_t>(fields.at("nsa_index_topk").number_value());
  golden.mode =
      fields.at("mode").string_value() == "CAUSAL" ? kernels::SequenceMode::kCausal : kernels::SequenceMode::kRepeat;
  const auto& expected = fields.at("expected").struct_value().fields();
  for (kernels::Output output : kernels::kAllOutputs) {
    const auto& value = expected.at(kernels::OutputName(output));
    if (value.has_list_value()) golden.expected[static_cast<size_t>(output)] = Numbers(value);
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
