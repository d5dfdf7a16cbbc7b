#include "client/outputs.h"

#include <algorithm>
#include <array>

namespace nsa::metadata::client {
namespace {

using R = v1::ExpandResponse;

constexpr std::array<OutputField, kNumOutputs> kOutputs = {{
    {v1::OUTPUT_SEQLENS_EXPANDED, "seqlens_expanded", true, &R::seqlens_expanded, &R::mutable_seqlens_expanded},
    {v1::OUTPUT_NSA_CACHE_SEQLENS, "nsa_cache_seqlens", true, &R::nsa_cache_seqlens, &R::mutable_nsa_cache_seqlens},
    {v1::OUTPUT_TOKEN_TO_BATCH_IDX, "token_to_batch_idx", true, &R::token_to_batch_idx, &R::mutable_token_to_batch_idx},
    {v1::OUTPUT_POSITIONS, "positions", true, &R::positions, &R::mutable_positions},
    {v1::OUTPUT_CU_SEQLENS_Q, "cu_seqlens_q", false, &R::cu_seqlens_q, &R::mutable_cu_seqlens_q},
    {v1::OUTPUT_CU_SEQLENS_K, "cu_seqlens_k", false, &R::cu_seqlens_k, &R::mutable_cu_seqlens_k},
    {v1::OUTPUT_NSA_CU_SEQLENS_K, "nsa_cu_seqlens_k", false, &R::nsa_cu_seqlens_k, &R::mutable_nsa_cu_seqlens_k},
    {v1::OUTPUT_KS, "ks", true, &R::ks, &R::mutable_ks},
    {v1::OUTPUT_KE, "ke", true, &R::ke, &R::mutable_ke},
}};

}  // namespace

std::span<const OutputField, kNumOutputs> AllOutputs() { return kOutputs; }

std::vector<const OutputField*> AskedOutputs(std::span<const v1::Output> outputs) {
  static constexpr v1::Output kDefault[] = {v1::OUTPUT_SEQLENS_EXPANDED, v1::OUTPUT_NSA_CACHE_SEQLENS};
  if (outputs.empty()) outputs = kDefault;
  std::vector<const OutputField*> asked;
  for (const OutputField& field : kOutputs) {
    if (std::ranges::find(outputs, field.output) != outputs.end()) asked.push_back(&field);
  }
  return asked;
}

}  // namespace nsa::metadata::client
