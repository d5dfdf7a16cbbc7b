// The expansion for callers who have their lengths on a device: device pointers and a stream in, arrays written in
// place.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/packed_batch.h"

namespace nsa::metadata::kernels::cuda {

// All pointers are the device's.
struct DraftExtendMetadata {
  const int32_t* extend_seq_lens = nullptr;  // [num_sequences]; a negative length counts as 0
  const int32_t* seq_lens = nullptr;         // [num_sequences], likewise
  int64_t num_sequences = 0;
  int32_t nsa_index_topk = 0;  // at least 1 where an output needs it
  SequenceMode mode = SequenceMode::kRepeat;
  // Null where an output is not asked; else room for `capacity` values (nsa_cu_seqlens_k: capacity + 1; cu_seqlens_*:
  // num_sequences + 1). Values that pass int32 wrap.
  OutputPointers out = {};
  // Tokens. Those at and after this one are not written.
  int64_t capacity = 0;
  // DraftExtendWorkspaceBytes(num_sequences) bytes, 8-byte aligned.
  void* workspace = nullptr;
};

enum class Search : uint8_t { kLinear, kBinary };

// The sequences up to which FillDraftExtendMetadataAdaptive searches linearly, where nothing else is said.
inline constexpr int64_t kLinearUpTo = 16;

size_t DraftExtendWorkspaceBytes(int64_t num_sequences);

// Expands on `stream`, by the search named. `*total_tokens` gets the sum of extend_seq_lens, which may pass `capacity`:
// then that many tokens would have been needed. Synchronises with the stream. Thread-safe for different workspaces.
// Returns the first CUDA error, after which the outputs are undefined; cudaErrorInvalidValue for a negative count, a
// null length array or workspace where one is needed.
cudaError_t FillDraftExtendMetadata(const DraftExtendMetadata& metadata, Search search, cudaStream_t stream,
                                    int64_t* total_tokens);

// As above, by linear search up to `threshold` sequences and by binary search above.
cudaError_t FillDraftExtendMetadataAdaptive(const DraftExtendMetadata& metadata, cudaStream_t stream,
                                            int64_t* total_tokens, int64_t threshold = kLinearUpTo);

}  // namespace nsa::metadata::kernels::cuda
