#include "kernels/cuda/lay_out.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/measure.h"

namespace nsa::metadata::kernels::cuda {
namespace {

constexpr OutputSet kFirstTwo = {Output::kSeqlensExpanded, Output::kNsaCacheSeqlens};

// `sums` is [num_sequences].
void PutSumsBefore(const BatchedRequest& request, SumsBefore* sums) {
  const bool needs_nsa = request.spec.outputs.Has(Output::kNsaCuSeqlensK);
  SumsBefore before;
  for (int64_t b = 0; b < request.num_sequences; ++b) {
    const int32_t q = request.extend_seq_lens[b];
    const int32_t s = request.seq_lens[b];
    sums[b] = before;
    before.k += static_cast<uint32_t>(s);
    if (needs_nsa) before.nsa += static_cast<uint32_t>(NsaTokens(request.spec, q, s));
  }
}

int64_t RoundUp(int64_t tokens) { return (tokens + kTokensAThread - 1) / kTokensAThread * kTokensAThread; }

}  // namespace

DeviceRequest ToDevice(const BatchedRequest& request, int32_t first_sequence, int32_t first_token) {
  DeviceRequest on_device;
  on_device.first_sequence = first_sequence;
  on_device.first_token = first_token;
  on_device.end_token = first_token + static_cast<int32_t>(request.total_tokens);
  on_device.nsa_index_topk = request.spec.nsa_index_topk;
  on_device.mode = request.spec.mode;
  std::copy(request.out.begin(), request.out.end(), on_device.out);
  return on_device;
}

absl::StatusOr<BatchSize> SizeOf(const RequestBatch& batch) {
  BatchSize size;
  size.num_sequences = static_cast<int32_t>(batch.num_sequences());
  size.num_requests = static_cast<int32_t>(batch.requests().size());
  size.first_two = true;
  int64_t num_tokens = 0;
  for (const BatchedRequest& request : batch.requests()) {
    num_tokens = RoundUp(num_tokens) + request.total_tokens;
    if ((request.spec.outputs.bits() & ~kFirstTwo.bits()) != 0) size.first_two = false;
  }
  if (num_tokens > INT32_MAX) {
    return absl::InvalidArgumentError(absl::StrCat("a batch of ", num_tokens, " tokens is more than ", INT32_MAX));
  }
  if (batch.requests().size() > static_cast<size_t>(kMostRequests)) {
    return absl::InvalidArgumentError(
        absl::StrCat("a batch of ", batch.requests().size(), " requests is more than ", kMostRequests));
  }
  size.num_tokens = static_cast<int32_t>(num_tokens);
  return size;
}

void LayOut(const RequestBatch& batch, const BatchSize& size, unsigned char* base) {
  const BatchLayout layout(size);
  auto* requests = reinterpret_cast<DeviceRequest*>(base + layout.requests);
  auto* sums_before = reinterpret_cast<SumsBefore*>(base + layout.sums_before);
  auto* request_of = reinterpret_cast<RequestIndex*>(base + layout.request_of);
  auto* first_tokens = reinterpret_cast<int32_t*>(base + layout.first_tokens);
  auto* seq_lens = reinterpret_cast<int32_t*>(base + layout.seq_lens);
  int32_t sequence = 0;
  int32_t token = 0;
  for (int32_t r = 0; r < size.num_requests; ++r) {
    const BatchedRequest& request = batch.requests()[r];
    const auto count = static_cast<int32_t>(request.num_sequences);
    token = static_cast<int32_t>(RoundUp(token));
    requests[r] = ToDevice(request, sequence, token);
    std::copy_n(request.seq_lens, count, seq_lens + sequence);
    if (size.num_requests != 1) std::fill_n(request_of + sequence, count, static_cast<RequestIndex>(r));
    for (int32_t b = 0; b < count; ++b) {
      first_tokens[sequence + b] = token;
      token += request.extend_seq_lens[b];
    }
    if (!size.first_two) PutSumsBefore(request, sums_before + sequence);
    sequence += count;
  }
  first_tokens[size.num_sequences] = size.num_tokens;
}

}  // namespace nsa::metadata::kernels::cuda
