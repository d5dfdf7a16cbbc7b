// The definitions, written down one value at a time. Nothing here is fast; everything else is tested against it.

#include "kernels/reference.h"

#include <algorithm>

namespace nsa::metadata::kernels {
namespace {

void ExpandTokens(const BatchedRequest& request) {
  const OutputPointers& out = request.out;
  const auto put = [&out](Output output, int64_t index, int64_t value) {
    if (int32_t* array = out[static_cast<size_t>(output)]) array[index] = static_cast<int32_t>(value);
  };
  int64_t t = 0;
  int64_t ks = 0;
  int64_t nsa_sum = 0;
  put(Output::kNsaCuSeqlensK, 0, 0);
  for (int64_t b = 0; b < request.num_sequences; ++b) {
    const int64_t q = request.extend_seq_lens[b];
    const int64_t s = request.seq_lens[b];
    for (int64_t i = 0; i < q; ++i, ++t) {
      const int64_t expanded = request.spec.mode == SequenceMode::kCausal ? std::max<int64_t>(s - q + i + 1, 0) : s;
      const int64_t nsa = std::min<int64_t>(expanded, request.spec.nsa_index_topk);
      nsa_sum += nsa;
      put(Output::kSeqlensExpanded, t, expanded);
      put(Output::kNsaCacheSeqlens, t, nsa);
      put(Output::kTokenToBatchIdx, t, b);
      put(Output::kPositions, t, s - q + i);
      put(Output::kNsaCuSeqlensK, t + 1, nsa_sum);
      put(Output::kKs, t, ks);
      put(Output::kKe, t, ks + expanded);
    }
    ks += s;
  }
}

void ExpandSequences(const BatchedRequest& request) {
  int32_t* cu_seqlens_q = request.out[static_cast<size_t>(Output::kCuSeqlensQ)];
  int32_t* cu_seqlens_k = request.out[static_cast<size_t>(Output::kCuSeqlensK)];
  int64_t q_sum = 0;
  int64_t k_sum = 0;
  for (int64_t b = 0; b <= request.num_sequences; ++b) {
    if (cu_seqlens_q) cu_seqlens_q[b] = static_cast<int32_t>(q_sum);
    if (cu_seqlens_k) cu_seqlens_k[b] = static_cast<int32_t>(k_sum);
    if (b == request.num_sequences) break;
    q_sum += request.extend_seq_lens[b];
    k_sum += request.seq_lens[b];
  }
}

}  // namespace

void ExpandRequestByReference(const BatchedRequest& request) {
  ExpandTokens(request);
  ExpandSequences(request);
}

}  // namespace nsa::metadata::kernels
