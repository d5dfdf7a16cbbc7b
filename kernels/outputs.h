// The words of an expansion: modes, outputs, sets of outputs.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace nsa::metadata::kernels {

// How a sequence's length turns into one value per token. The values are those of the wire.
enum class SequenceMode : uint8_t {
  kRepeat = 1,  // seqlens_expanded[t] = s_b
  kCausal = 2,  // seqlens_expanded[t] = max(s_b - q_b + i + 1, 0)
};

// The arrays of an expansion, in the order of the wire's fields 16 to 24.
enum class Output : uint8_t {
  kSeqlensExpanded,  // [total_tokens]
  kNsaCacheSeqlens,  // [total_tokens]
  kTokenToBatchIdx,  // [total_tokens]
  kPositions,        // [total_tokens]
  kCuSeqlensQ,       // [num_sequences + 1]
  kCuSeqlensK,       // [num_sequences + 1]
  kNsaCuSeqlensK,    // [total_tokens + 1]
  kKs,               // [total_tokens]
  kKe,               // [total_tokens]
};
inline constexpr size_t kNumOutputs = 9;

inline constexpr std::array<Output, kNumOutputs> kAllOutputs = {
    Output::kSeqlensExpanded,
    Output::kNsaCacheSeqlens,
    Output::kTokenToBatchIdx,
    Output::kPositions,
    Output::kCuSeqlensQ,
    Output::kCuSeqlensK,
    Output::kNsaCuSeqlensK,
    Output::kKs,
    Output::kKe,
};

// The proto field's name.
constexpr const char* OutputName(Output output) {
  constexpr std::array<const char*, kNumOutputs> kNames = {
      "seqlens_expanded",
      "nsa_cache_seqlens",
      "token_to_batch_idx",
      "positions",
      "cu_seqlens_q",
      "cu_seqlens_k",
      "nsa_cu_seqlens_k",
      "ks",
      "ke",
  };
  return kNames[static_cast<size_t>(output)];
}

// A set of outputs, a value.
class OutputSet {
 public:
  constexpr OutputSet() = default;
  constexpr OutputSet(std::initializer_list<Output> outputs) {
    for (Output output : outputs) Add(output);
  }
  static constexpr OutputSet All() {
    OutputSet set;
    for (Output output : kAllOutputs) set.Add(output);
    return set;
  }

  constexpr void Add(Output output) { bits_ |= Bit(output); }
  constexpr bool Has(Output output) const { return (bits_ & Bit(output)) != 0; }
  constexpr bool HasAny(OutputSet other) const { return (bits_ & other.bits_) != 0; }
  // Calls `f` with each output in it, in the order of the enum.
  template <typename F>
  constexpr void ForEach(F f) const {
    for (uint16_t left = bits_; left != 0; left &= left - 1) f(static_cast<Output>(std::countr_zero(left)));
  }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr uint16_t bits() const { return bits_; }
  friend constexpr bool operator==(OutputSet, OutputSet) = default;

 private:
  static constexpr uint16_t Bit(Output output) { return static_cast<uint16_t>(1u << static_cast<unsigned>(output)); }

  uint16_t bits_ = 0;
};

// The outputs that need nsa_index_topk.
inline constexpr OutputSet kNsaOutputs = {Output::kNsaCacheSeqlens, Output::kNsaCuSeqlensK};

// How many int32 values `output` holds.
constexpr int64_t OutputLength(Output output, int64_t num_sequences, int64_t total_tokens) {
  switch (output) {
    case Output::kCuSeqlensQ:
    case Output::kCuSeqlensK:
      return num_sequences + 1;
    case Output::kNsaCuSeqlensK:
      return total_tokens + 1;
    default:
      return total_tokens;
  }
}

}  // namespace nsa::metadata::kernels
