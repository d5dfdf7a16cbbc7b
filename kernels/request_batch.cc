#include "kernels/request_batch.h"

namespace nsa::metadata::kernels {

RequestBatch::RequestBatch(int64_t max_sequences, int64_t max_requests)
    : max_sequences_(max_sequences), max_requests_(max_requests) {
  requests_.reserve(static_cast<size_t>(max_requests));
}

bool RequestBatch::Add(const RequestSpec& spec, std::span<const int32_t> extend_seq_lens,
                       std::span<const int32_t> seq_lens, int64_t total_tokens, const OutputPointers& out) {
  const auto num_sequences = static_cast<int64_t>(seq_lens.size());
  if (num_sequences > max_sequences_ - num_sequences_) return false;
  if (static_cast<int64_t>(requests_.size()) == max_requests_) return false;
  requests_.push_back({.spec = spec,
                       .extend_seq_lens = extend_seq_lens.data(),
                       .seq_lens = seq_lens.data(),
                       .num_sequences = num_sequences,
                       .total_tokens = total_tokens,
                       .out = out});
  num_sequences_ += num_sequences;
  total_tokens_ += total_tokens;
  return true;
}

void RequestBatch::Clear() {
  num_sequences_ = 0;
  total_tokens_ = 0;
  requests_.clear();
}

}  // namespace nsa::metadata::kernels
