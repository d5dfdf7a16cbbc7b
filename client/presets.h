// What engines expand, as requests: which lengths and which mode each of their steps has. client/PRESETS.md has the
// sources.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "client/request.h"

namespace nsa::metadata::client {

// Lengths made for a Request.
struct PresetLengths {
  v1::SequenceMode mode = v1::SEQUENCE_MODE_UNSPECIFIED;
  // [num_sequences] each, tokens.
  std::vector<int32_t> extend_seq_lens;
  std::vector<int32_t> seq_lens;

  // It points into this object.
  Request ToRequest() const;
};

// SGLang's NSA/DSA backend, decode: a token a sequence, which sees all of it. seqlens_expanded is seq_lens.
PresetLengths SglangDecode(std::span<const int32_t> seq_lens);
// target_verify: `num_draft_tokens` drafts after each sequence of seq_lens tokens. Sums may pass int32; then the server
// refuses the negative length.
PresetLengths SglangTargetVerify(std::span<const int32_t> seq_lens, int32_t num_draft_tokens);
// extend and draft_extend: the last extend_seq_lens[b] tokens of each sequence; in draft_extend those are the accepted.
PresetLengths SglangExtend(std::span<const int32_t> extend_seq_lens, std::span<const int32_t> seq_lens);
// vLLM's sparse MLA indexer, decode with drafts of different numbers: decode_lens tokens at the end of each sequence.
PresetLengths VllmRaggedDecode(std::span<const int32_t> decode_lens, std::span<const int32_t> seq_lens);
// FlashInfer's get_batch_indices_positions: token_to_batch_idx and positions are its batch_indices and positions.
// `append_indptr` is [num_sequences + 1], running sums from 0.
PresetLengths FlashInferBatchIndicesPositions(std::span<const int32_t> append_indptr,
                                              std::span<const int32_t> seq_lens);
// TensorRT-LLM's kv_lens_expanded: each sequence's length once for each of its 1 + max_draft_tokens tokens.
PresetLengths TensorRtLlmKvLensExpanded(std::span<const int32_t> kv_lens, int32_t max_draft_tokens);

}  // namespace nsa::metadata::client
