#include "client/reference.h"

#include <algorithm>
#include <array>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "client/outputs.h"

namespace nsa::metadata::client {
namespace {

// The arrays of a reply: appends to those that were asked for and leaves the others empty.
class Arrays {
 public:
  Arrays(const Request& request, v1::ExpandResponse& response) {
    for (const OutputField* field : AskedOutputs(request.outputs)) {
      arrays_[field->output] = (response.*field->mutate)();
    }
  }

  void Append(v1::Output output, int64_t value) {
    if (arrays_[output] != nullptr) arrays_[output]->Add(static_cast<int32_t>(value));
  }

 private:
  std::array<Values*, v1::Output_ARRAYSIZE> arrays_ = {};
};

std::string ValueDifference(const OutputField& field, const Values& got, const Values& want) {
  const std::string name(field.name);
  const auto [differs, expected] = std::mismatch(got.begin(), got.end(), want.begin(), want.end());
  if (differs != got.end() && expected != want.end()) {
    return absl::StrCat(name, "[", differs - got.begin(), "]: got ", *differs, ", want ", *expected);
  }
  if (got.size() != want.size()) return absl::StrCat(name, ": got ", got.size(), " entries, want ", want.size());
  return "";
}

}  // namespace

v1::ExpandResponse Reference(const Request& request) {
  v1::ExpandResponse response;
  const bool causal = request.mode == v1::SEQUENCE_MODE_CAUSAL;
  Arrays arrays(request, response);
  int64_t q_sum = 0, k_sum = 0, nsa_sum = 0;
  arrays.Append(v1::OUTPUT_CU_SEQLENS_Q, 0);
  arrays.Append(v1::OUTPUT_CU_SEQLENS_K, 0);
  arrays.Append(v1::OUTPUT_NSA_CU_SEQLENS_K, 0);
  const size_t num_sequences = std::min(request.extend_seq_lens.size(), request.seq_lens.size());
  for (size_t b = 0; b < num_sequences; ++b) {
    const int64_t q = request.extend_seq_lens[b];
    const int64_t s = request.seq_lens[b];
    for (int64_t i = 0; i < q; ++i) {
      const int64_t position = s - q + i;
      const int64_t expanded = causal ? std::max<int64_t>(position + 1, 0) : s;
      const int64_t selected = std::min<int64_t>(expanded, request.nsa_index_topk);
      nsa_sum += selected;
      arrays.Append(v1::OUTPUT_SEQLENS_EXPANDED, expanded);
      arrays.Append(v1::OUTPUT_NSA_CACHE_SEQLENS, selected);
      arrays.Append(v1::OUTPUT_TOKEN_TO_BATCH_IDX, b);
      arrays.Append(v1::OUTPUT_POSITIONS, position);
      arrays.Append(v1::OUTPUT_NSA_CU_SEQLENS_K, nsa_sum);
      arrays.Append(v1::OUTPUT_KS, k_sum);
      arrays.Append(v1::OUTPUT_KE, k_sum + expanded);
    }
    q_sum += q;
    k_sum += s;
    arrays.Append(v1::OUTPUT_CU_SEQLENS_Q, q_sum);
    arrays.Append(v1::OUTPUT_CU_SEQLENS_K, k_sum);
  }
  response.set_request_id(request.request_id);
  response.set_total_tokens(q_sum);
  response.set_mode(causal ? v1::SEQUENCE_MODE_CAUSAL : v1::SEQUENCE_MODE_REPEAT);
  return response;
}

std::string FirstDifference(const v1::ExpandResponse& got, const v1::ExpandResponse& want) {
  if (got.request_id() != want.request_id()) {
    return absl::StrCat("request_id: got ", got.request_id(), ", want ", want.request_id());
  }
  if (got.total_tokens() != want.total_tokens()) {
    return absl::StrCat("total_tokens: got ", got.total_tokens(), ", want ", want.total_tokens());
  }
  if (got.mode() != want.mode()) {
    return absl::StrCat("mode: got ", v1::SequenceMode_Name(got.mode()), ", want ", v1::SequenceMode_Name(want.mode()));
  }
  for (const OutputField& field : AllOutputs()) {
    std::string difference = ValueDifference(field, (got.*field.get)(), (want.*field.get)());
    if (!difference.empty()) return difference;
  }
  return "";
}

}  // namespace nsa::metadata::client
