#include "kernels/packed_batch.h"

#include <algorithm>

namespace nsa::metadata::kernels {

PackedBatch::PackedBatch(std::span<int32_t> extend_seq_lens, std::span<int32_t> seq_lens, int64_t max_requests)
    : extend_seq_lens_(extend_seq_lens), seq_lens_(seq_lens), max_requests_(max_requests) {
  requests_.reserve(static_cast<size_t>(max_requests));
}

PackedBatch::PackedBatch(int32_t* lengths, int64_t max_sequences, int64_t max_requests)
    : PackedBatch({lengths, static_cast<size_t>(max_sequences)},
                  {lengths + max_sequences, static_cast<size_t>(max_sequences)}, max_requests) {}

bool PackedBatch::Add(const RequestSpec& spec, std::span<const int32_t> extend_seq_lens,
                      std::span<const int32_t> seq_lens, int64_t total_tokens, const OutputPointers& out) {
  const size_t room = std::min(extend_seq_lens_.size(), seq_lens_.size()) - num_sequences_;
  if (extend_seq_lens.size() > room || static_cast<int64_t>(requests_.size()) == max_requests_) return false;
  std::copy(extend_seq_lens.begin(), extend_seq_lens.end(), extend_seq_lens_.begin() + num_sequences_);
  std::copy(seq_lens.begin(), seq_lens.end(), seq_lens_.begin() + num_sequences_);
  requests_.push_back({.spec = spec,
                       .first_sequence = num_sequences(),
                       .num_sequences = static_cast<int64_t>(extend_seq_lens.size()),
                       .first_token = total_tokens_,
                       .total_tokens = total_tokens,
                       .out = out});
  num_sequences_ += extend_seq_lens.size();
  total_tokens_ += total_tokens;
  return true;
}

void PackedBatch::Clear() {
  num_sequences_ = 0;
  total_tokens_ = 0;
  requests_.clear();
}

}  // namespace nsa::metadata::kernels
