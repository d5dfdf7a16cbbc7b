#include "client/bench_request.h"

#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "client/outputs.h"
#include "client/reference.h"

namespace nsa::metadata::client {
namespace {

constexpr int32_t kNsaIndexTopk = 2048;
// A sequence has up to this many tokens before those it extends by.
constexpr uint64_t kMostBefore = 8192;

// `total` in `parts` numbers, each 1 or more, that differ up to eightfold.
std::vector<int32_t> Split(int64_t total, int64_t parts, std::mt19937_64& random) {
  std::vector<int64_t> weights(static_cast<size_t>(parts));
  int64_t sum = 0;
  // The top bits, without a distribution of the library's own making: the same everywhere.
  for (int64_t& weight : weights) sum += weight = static_cast<int64_t>(1 + (random() >> 61));
  std::vector<int32_t> split;
  int64_t left = total - parts;
  for (const int64_t weight : weights) {
    const int64_t share = sum == weight ? left : left * weight / sum;
    split.push_back(static_cast<int32_t>(1 + share));
    left -= share;
    sum -= weight;
  }
  return split;
}

int64_t TokensFor(const BenchShape& shape) {
  if (shape.total_tokens > 0) return shape.total_tokens;
  int64_t per_token = 0;
  for (const OutputField* field : AskedOutputs(shape.outputs)) per_token += field->per_token ? 4 : 0;
  return shape.reply_bytes / std::max<int64_t>(per_token, 4);
}

}  // namespace

absl::StatusOr<BenchRequest> BenchRequest::Create(const BenchShape& shape) {
  if (shape.num_sequences < 1) {
    return absl::InvalidArgumentError(absl::StrCat("num_sequences is ", shape.num_sequences, ", want 1 or more"));
  }
  for (int64_t tokens = TokensFor(shape); tokens >= shape.num_sequences; --tokens) {
    BenchRequest request(shape, tokens);
    const auto bytes = static_cast<int64_t>(request.reply().ByteSizeLong());
    if (shape.total_tokens > 0 || bytes <= shape.reply_bytes) return request;
    // What surrounds the arrays takes some bytes, and other outputs may.
    tokens -= (bytes - shape.reply_bytes) / (4 * kNumOutputs);
  }
  if (shape.total_tokens > 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "total_tokens is ", shape.total_tokens, ", less than a token for each of num_sequences ", shape.num_sequences));
  }
  return absl::InvalidArgumentError(absl::StrCat("reply_bytes is ", shape.reply_bytes,
                                                 ", less than the reply for a token in each of num_sequences ",
                                                 shape.num_sequences));
}

BenchRequest::BenchRequest(const BenchShape& shape, int64_t total_tokens) : shape_(shape) {
  std::mt19937_64 random(shape.seed);
  extend_seq_lens_ = Split(total_tokens, shape.num_sequences, random);
  for (const int32_t length : extend_seq_lens_) {
    seq_lens_.push_back(length + static_cast<int32_t>(random() % kMostBefore));
  }
  reply_ = Reference(WithId(kFirstBenchId));
}

Request BenchRequest::WithId(uint64_t request_id) const {
  Request request(shape_.mode);
  request.extend_seq_lens = extend_seq_lens_;
  request.seq_lens = seq_lens_;
  request.nsa_index_topk = kNsaIndexTopk;
  request.outputs = shape_.outputs;
  request.request_id = request_id;
  request.include_timing = shape_.include_timing;
  return request;
}

}  // namespace nsa::metadata::client
