// The expansion for callers who have their lengths on a device: device pointers and a stream in, arrays written in
// place.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/fill_workspace.h"
#include "kernels/cuda/launch.h"
#include "kernels/launch_plan.h"
#include "kernels/request_batch.h"

namespace nsa::metadata::kernels::cuda {

// All pointers are the device's.
struct DraftExtendMetadata {
  const int32_t* extend_seq_lens = nullptr;  // [num_sequences]; a negative length counts as 0
  const int32_t* seq_lens = nullptr;         // [num_sequences], likewise
  int64_t num_sequences = 0;
  int32_t nsa_index_topk = 0;  // at least 1 where an output needs it
  SequenceMode mode = SequenceMode::kRepeat;
  // Null where an output is not asked; else room for `capacity` values (nsa_cu_seqlens_k: capacity + 1; cu_seqlens_*:
  // num_sequences + 1). Values that pass int32 wrap, but a first token past it is no token's, and counts as INT32_MAX
  // in cu_seqlens_q.
  OutputPointers out = {};
  // Tokens. Those at and after this one are not written.
  int64_t capacity = 0;
  // Where the sum of extend_seq_lens goes, or null. It may pass `capacity`: then that many tokens would have been
  // needed. The host's memory, mapped, will do.
  int64_t* total_tokens = nullptr;
  // DraftExtendWorkspaceBytes(num_sequences) bytes, 8-byte aligned; null where these are none.
  void* workspace = nullptr;
};

// What kernels are launched for. Both counts are up to 2^29, not negative.
BatchSize SizeOf(const DraftExtendMetadata& metadata);

// For num_sequences up to 2^29, not negative. 0 up to 1,024.
size_t DraftExtendWorkspaceBytes(int64_t num_sequences);

// Expands on `stream` by `kernel`, one of kLinear, kBinary, kRows and kTile. Asynchronous: can be captured in a graph.
// Thread-safe for different workspaces. Returns the first launch's error; cudaErrorInvalidValue for a count that is
// negative or more than 2^29, another kernel, or a null length array or workspace where one is needed. `done`: flags
// for NumBlocks(kernel, SizeOf(metadata)) blocks, or one for all, for a host that looks at them, which is 1 us sooner
// than to wait for the stream (H100).
cudaError_t LaunchDraftExtendMetadata(const DraftExtendMetadata& metadata, Kernel kernel, cudaStream_t stream,
                                      const DoneFlags& done = {});

// The same, and waits: `*total_tokens` is the sum. metadata's own total_tokens and workspace are not looked at.
// Returns the first CUDA error, after which the outputs are undefined.
cudaError_t FillDraftExtendMetadata(const DraftExtendMetadata& metadata, Kernel kernel, cudaStream_t stream,
                                    FillWorkspace& workspace, int64_t* total_tokens);

// The kernel that `plan` chooses for as many tokens as there is room for, for a launch that is waited for: in a graph
// kRows takes 1 us less for the first two outputs of 1,025 to 4,096 sequences of 16 tokens and more, up to 66,000
// (H100).
Kernel ChooseKernel(const DraftExtendMetadata& metadata, const LaunchPlan& plan = {});

// As above, by that kernel.
cudaError_t FillDraftExtendMetadataAdaptive(const DraftExtendMetadata& metadata, cudaStream_t stream,
                                            FillWorkspace& workspace, int64_t* total_tokens,
                                            const LaunchPlan& plan = {});

}  // namespace nsa::metadata::kernels::cuda
