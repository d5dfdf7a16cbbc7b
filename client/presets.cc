#include "client/presets.h"

#include <algorithm>

namespace nsa::metadata::client {
namespace {

// What passes int32 becomes negative, which the server refuses.
int32_t Wrapped(int64_t value) { return static_cast<int32_t>(static_cast<uint32_t>(value)); }

std::vector<int32_t> Copy(std::span<const int32_t> values) { return {values.begin(), values.end()}; }

}  // namespace

Request PresetLengths::ToRequest() const {
  Request request(mode);
  request.extend_seq_lens = extend_seq_lens;
  request.seq_lens = seq_lens;
  return request;
}

PresetLengths SglangDecode(std::span<const int32_t> seq_lens) {
  return {v1::SEQUENCE_MODE_CAUSAL, std::vector<int32_t>(seq_lens.size(), 1), Copy(seq_lens)};
}

PresetLengths SglangTargetVerify(std::span<const int32_t> seq_lens, int32_t num_draft_tokens) {
  PresetLengths lengths = {v1::SEQUENCE_MODE_CAUSAL, std::vector<int32_t>(seq_lens.size(), num_draft_tokens), {}};
  for (int32_t length : seq_lens) {
    lengths.seq_lens.push_back(Wrapped(int64_t{length} + num_draft_tokens));
  }
  return lengths;
}

PresetLengths SglangExtend(std::span<const int32_t> extend_seq_lens, std::span<const int32_t> seq_lens) {
  return {v1::SEQUENCE_MODE_CAUSAL, Copy(extend_seq_lens), Copy(seq_lens)};
}

PresetLengths VllmRaggedDecode(std::span<const int32_t> decode_lens, std::span<const int32_t> seq_lens) {
  return {v1::SEQUENCE_MODE_CAUSAL, Copy(decode_lens), Copy(seq_lens)};
}

PresetLengths FlashInferBatchIndicesPositions(std::span<const int32_t> append_indptr,
                                              std::span<const int32_t> seq_lens) {
  PresetLengths lengths = {v1::SEQUENCE_MODE_CAUSAL, {}, Copy(seq_lens)};
  for (size_t b = 1; b < append_indptr.size(); ++b) {
    lengths.extend_seq_lens.push_back(Wrapped(int64_t{append_indptr[b]} - append_indptr[b - 1]));
  }
  return lengths;
}

PresetLengths TensorRtLlmKvLensExpanded(std::span<const int32_t> kv_lens, int32_t max_draft_tokens) {
  return {v1::SEQUENCE_MODE_REPEAT, std::vector<int32_t>(kv_lens.size(), Wrapped(int64_t{1} + max_draft_tokens)),
          Copy(kv_lens)};
}

}  // namespace nsa::metadata::client
