// Every per-token output is, over one sequence, a constant or a ramp that rises by one, clamped below by 0 and above by
// K: loops that the compiler turns into vector stores.

#include "kernels/cpu.h"

#include <algorithm>
#include <cstdint>

namespace nsa::metadata::kernels {
namespace {

// A row is written in whole blocks where its array has room for what is past the row's end, which the next row, written
// after it, overwrites: a loop that ends where the row does is mispredicted once a row, and that takes longer than a
// short row itself.
constexpr int64_t kShort = 16;
constexpr int64_t kBlock = 128;
// Values in a cache line.
constexpr int64_t kLine = 64 / sizeof(int32_t);

template <int64_t kCount, typename ValueAt>
inline void PutBlock(int32_t* out, uint32_t begin, const ValueAt& value_at) {
  for (uint32_t i = 0; i < kCount; ++i) out[i] = value_at(begin + i);
}

// Writes value_at(0) to value_at(count - 1), and may write more up to `end`, the array's. Returns where the row ends.
template <typename ValueAt>
inline int32_t* Put(int32_t* out, const int32_t* end, int64_t count, const ValueAt& value_at) {
  const int64_t room = end - out;
  if (count <= kShort && room >= kShort) {
    PutBlock<kShort>(out, 0, value_at);
    return out + count;
  }
  int64_t i = 0;
  if (count > kBlock) {  // from there on by whole cache lines, which a vector then never lies across
    PutBlock<kLine>(out, 0, value_at);
    i = kLine - static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) / sizeof(int32_t) % kLine);
  }
  for (; i + kBlock <= count; i += kBlock) PutBlock<kBlock>(out + i, static_cast<uint32_t>(i), value_at);
  if (room - i >= kBlock) {
    PutBlock<kBlock>(out + i, static_cast<uint32_t>(i), value_at);
  } else {
    for (; i < count; ++i) out[i] = value_at(static_cast<uint32_t>(i));
  }
  return out + count;
}

// `count` times `value`.
inline int32_t* Fill(int32_t* out, const int32_t* end, int64_t count, int64_t value) {
  return Put(out, end, count, [value](uint32_t) { return static_cast<int32_t>(value); });
}

// first, first + 1, …, `count` of them. What is past them may wrap.
inline int32_t* Ramp(int32_t* out, const int32_t* end, int64_t count, int64_t first) {
  return Put(out, end, count,
             [first = static_cast<uint32_t>(first)](uint32_t i) { return static_cast<int32_t>(first + i); });
}

// A row's seqlens_expanded plus an offset, in pieces: `zeros` clamped values, then a ramp, then `tops` values at the
// upper bound.
struct Row {
  int64_t zeros;
  int64_t first;  // the ramp's first value
  int64_t ramp;
  int64_t tops;
  int64_t top;
};

// The pieces of min(max(s - q + i + 1, 0), bound), i from 0 to q - 1.
inline Row CausalRow(int64_t q, int64_t s, int64_t bound) {
  Row row;
  row.zeros = std::clamp<int64_t>(q - s, 0, q);
  row.first = std::max<int64_t>(s - q + 1, 1);
  row.top = bound;
  row.ramp = std::clamp<int64_t>(bound - row.first + 1, 0, q - row.zeros);
  row.tops = q - row.zeros - row.ramp;
  return row;
}

// Writes min(max(s - q + i + 1, 0), bound) + offset. The sums fit int32: an output for which they do not is refused
// before.
inline int32_t* PutCausal(int32_t* out, const int32_t* end, int64_t q, int64_t s, int64_t bound, int64_t offset) {
  if (q <= kBlock) {  // sooner clamped than cut into pieces
    const auto first = static_cast<uint32_t>(s - q + 1);
    return Put(out, end, q, [=](uint32_t i) {
      const int32_t value = std::min(std::max(static_cast<int32_t>(first + i), 0), static_cast<int32_t>(bound));
      return static_cast<int32_t>(static_cast<uint32_t>(value) + static_cast<uint32_t>(offset));
    });
  }
  const Row row = CausalRow(q, s, bound);
  if (row.zeros > 0) out = Fill(out, end, row.zeros, offset);
  if (row.ramp > 0) out = Ramp(out, end, row.ramp, row.first + offset);
  if (row.tops > 0) out = Fill(out, end, row.tops, row.top + offset);
  return out;
}

// seqlens_expanded (bound: none), nsa_cache_seqlens (bound: K), ke (offset: ks) differ in bound and offset only.
template <SequenceMode mode>
void PutSeqlens(int32_t* out, const BatchedRequest& request, int64_t bound, bool add_ks) {
  const int32_t* const end = out + request.total_tokens;
  int64_t ks = 0;
  for (int64_t b = 0; b < request.num_sequences; ++b) {
    const int64_t q = request.extend_seq_lens[b];
    const int64_t s = request.seq_lens[b];
    const int64_t offset = add_ks ? ks : 0;
    if constexpr (mode == SequenceMode::kRepeat) {
      out = Fill(out, end, q, std::min(s, bound) + offset);
    } else {
      out = PutCausal(out, end, q, s, bound, offset);
    }
    ks += s;
  }
}

void PutSeqlens(int32_t* out, const BatchedRequest& request, int64_t bound, bool add_ks) {
  if (request.spec.mode == SequenceMode::kRepeat) {
    PutSeqlens<SequenceMode::kRepeat>(out, request, bound, add_ks);
  } else {
    PutSeqlens<SequenceMode::kCausal>(out, request, bound, add_ks);
  }
}

void PutNsaCuSeqlensK(int32_t* out, const BatchedRequest& request) {
  const int64_t k = request.spec.nsa_index_topk;
  const bool causal = request.spec.mode == SequenceMode::kCausal;
  int64_t sum = 0;
  *out++ = 0;
  for (int64_t b = 0; b < request.num_sequences; ++b) {
    const int64_t q = request.extend_seq_lens[b];
    const int64_t s = request.seq_lens[b];
    const Row row =
        causal ? CausalRow(q, s, k) : Row{.zeros = 0, .first = 0, .ramp = 0, .tops = q, .top = std::min(s, k)};
    out = std::fill_n(out, row.zeros, static_cast<int32_t>(sum));
    for (int64_t i = 0; i < row.ramp; ++i) *out++ = static_cast<int32_t>(sum += row.first + i);
    for (int64_t i = 0; i < row.tops; ++i) *out++ = static_cast<int32_t>(sum += row.top);
  }
}

void PutRunningSum(int32_t* out, const int32_t* lengths, int64_t count) {
  int64_t sum = 0;
  for (int64_t b = 0; b < count; ++b) {
    out[b] = static_cast<int32_t>(sum);
    sum += lengths[b];
  }
  out[count] = static_cast<int32_t>(sum);
}

void PutTokenToBatchIdx(int32_t* out, const BatchedRequest& request) {
  const int32_t* const end = out + request.total_tokens;
  for (int64_t b = 0; b < request.num_sequences; ++b) out = Fill(out, end, request.extend_seq_lens[b], b);
}

void PutPositions(int32_t* out, const BatchedRequest& request) {
  const int32_t* const end = out + request.total_tokens;
  for (int64_t b = 0; b < request.num_sequences; ++b) {
    out = Ramp(out, end, request.extend_seq_lens[b], int64_t{request.seq_lens[b]} - request.extend_seq_lens[b]);
  }
}

void PutKs(int32_t* out, const BatchedRequest& request) {
  const int32_t* const end = out + request.total_tokens;
  int64_t ks = 0;
  for (int64_t b = 0; b < request.num_sequences; ++b) {
    out = Fill(out, end, request.extend_seq_lens[b], ks);
    ks += request.seq_lens[b];
  }
}

// No length passes this.
constexpr int64_t kUnbounded = INT32_MAX;

}  // namespace

// For each kind of vector that a processor may have; the loader picks its own. Not for other processors than x86-64,
// nor under a sanitizer, whose functions can't be called that early.
#if defined(__x86_64__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
__attribute__((flatten, target_clones("avx512f", "avx2", "default")))
#endif
void ExpandRequestOnCpu(const BatchedRequest& request) {
  const auto out = [&request](Output output) { return request.out[static_cast<size_t>(output)]; };
  if (int32_t* array = out(Output::kSeqlensExpanded)) {
    PutSeqlens(array, request, kUnbounded, /*add_ks=*/false);
  }
  if (int32_t* array = out(Output::kNsaCacheSeqlens)) {
    PutSeqlens(array, request, request.spec.nsa_index_topk, /*add_ks=*/false);
  }
  if (int32_t* array = out(Output::kTokenToBatchIdx)) PutTokenToBatchIdx(array, request);
  if (int32_t* array = out(Output::kPositions)) PutPositions(array, request);
  if (int32_t* array = out(Output::kCuSeqlensQ)) PutRunningSum(array, request.extend_seq_lens, request.num_sequences);
  if (int32_t* array = out(Output::kCuSeqlensK)) PutRunningSum(array, request.seq_lens, request.num_sequences);
  if (int32_t* array = out(Output::kNsaCuSeqlensK)) PutNsaCuSeqlensK(array, request);
  if (int32_t* array = out(Output::kKs)) PutKs(array, request);
  if (int32_t* array = out(Output::kKe)) {
    PutSeqlens(array, request, kUnbounded, /*add_ks=*/true);
  }
}

void ExpandOnCpu(const RequestBatch& batch) {
  for (const BatchedRequest& request : batch.requests()) ExpandRequestOnCpu(request);
}

}  // namespace nsa::metadata::kernels
