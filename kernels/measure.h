// What an expansion will hold, known before it is computed.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "kernels/request_batch.h"

namespace nsa::metadata::kernels {

// The index of the first negative value of `lengths`, or nothing.
std::optional<size_t> FirstNegative(std::span<const int32_t> lengths);

// The sum of `lengths`, in 64 bits.
int64_t Sum(std::span<const int32_t> lengths);

// The largest value that `output` would hold, in 64 bits, so that one which passes int32 is seen before anything is
// computed. `extend_seq_lens` and `seq_lens` are [num_sequences], none negative. 0 when the output is empty.
int64_t LargestValue(Output output, const RequestSpec& spec, std::span<const int32_t> extend_seq_lens,
                     std::span<const int32_t> seq_lens);

// The sum of min(seqlens_expanded, K) over a sequence of q tokens and length s, neither negative.
int64_t NsaTokens(const RequestSpec& spec, int64_t q, int64_t s);

}  // namespace nsa::metadata::kernels
