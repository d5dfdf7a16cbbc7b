#include "kernels/cuda/lay_out.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "kernels/measure.h"

namespace nsa::metadata::kernels::cuda {
namespace {

constexpr OutputSet kFirstTwo = {Output::kSeqlensExpanded, Output::kNsaCacheSeqlens};

int64_t RoundUp(int64_t tokens) { return (tokens + kTokensAThread - 1) / kTokensAThread * kTokensAThread; }

}  // namespace

DeviceRequest ToDevice(const PackedRequest& request, int64_t first_token) {
  DeviceRequest on_device;
  on_device.first_sequence = static_cast<int32_t>(request.first_sequence);
  on_device.first_token = static_cast<int32_t>(first_token);
  on_device.end_token = static_cast<int32_t>(first_token + request.total_tokens);
  on_device.nsa_index_topk = request.spec.nsa_index_topk;
  on_device.mode = request.spec.mode;
  std::copy(request.out.begin(), request.out.end(), on_device.out);
  return on_device;
}

absl::StatusOr<BatchSize> SizeOf(const PackedBatch& batch) {
  BatchSize size;
  size.num_sequences = static_cast<int32_t>(batch.num_sequences());
  size.num_requests = static_cast<int32_t>(batch.requests().size());
  size.first_two = true;
  int64_t num_tokens = 0;
  for (const PackedRequest& request : batch.requests()) {
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

void LayOut(const PackedBatch& batch, const BatchSize& size, unsigned char* base) {
  const BatchLayout layout(size);
  auto* requests = reinterpret_cast<DeviceRequest*>(base + layout.requests);
  auto* sums_before = reinterpret_cast<SumsBefore*>(base + layout.sums_before);
  auto* request_of = reinterpret_cast<RequestIndex*>(base + layout.request_of);
  auto* first_tokens = reinterpret_cast<int32_t*>(base + layout.first_tokens);
  const std::span<const int32_t> q = batch.extend_seq_lens();
  const std::span<const int32_t> s = batch.seq_lens();
  std::copy(s.begin(), s.end(), reinterpret_cast<int32_t*>(base + layout.seq_lens));
  int32_t token = 0;
  for (int32_t r = 0; r < size.num_requests; ++r) {
    const PackedRequest& request = batch.requests()[r];
    token = static_cast<int32_t>(RoundUp(token));
    requests[r] = ToDevice(request, token);
    const int64_t begin = request.first_sequence;
    const int64_t end = begin + request.num_sequences;
    for (int64_t b = begin; b < end; ++b) {
      first_tokens[b] = token;
      token += q[b];
    }
    if (size.num_requests != 1) std::fill(request_of + begin, request_of + end, static_cast<RequestIndex>(r));
    if (size.first_two) continue;
    const bool needs_nsa = request.spec.outputs.Has(Output::kNsaCuSeqlensK);
    SumsBefore before;
    for (int64_t b = begin; b < end; ++b) {
      sums_before[b] = before;
      before.k += static_cast<uint32_t>(s[b]);
      if (needs_nsa) before.nsa += static_cast<uint32_t>(NsaTokens(request.spec, q[b], s[b]));
    }
  }
  first_tokens[size.num_sequences] = size.num_tokens;
}

}  // namespace nsa::metadata::kernels::cuda
