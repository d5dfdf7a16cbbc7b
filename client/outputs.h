// The outputs by name, enum value and field, in one table.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "nsa/metadata/v1/metadata.pb.h"

namespace nsa::metadata::client {

using Values = google::protobuf::RepeatedField<int32_t>;

// One output and where an ExpandResponse holds it.
struct OutputField {
  v1::Output output;
  // The field's name in ExpandResponse.
  std::string_view name;
  // True: [total_tokens]. False: a running sum, [num_sequences + 1] or [total_tokens + 1].
  bool per_token;
  const Values& (v1::ExpandResponse::*get)() const;
  Values* (v1::ExpandResponse::*mutate)();
};

inline constexpr int kNumOutputs = 9;

// Every output, in the order of the enum.
std::span<const OutputField, kNumOutputs> AllOutputs();

// The outputs that a request with this list gets, in the order of the enum: the first two if it is empty, each once.
std::vector<const OutputField*> AskedOutputs(std::span<const v1::Output> outputs);

}  // namespace nsa::metadata::client
