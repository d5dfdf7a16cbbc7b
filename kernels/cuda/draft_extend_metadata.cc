#include "kernels/cuda/draft_extend_metadata.h"

#include <algorithm>

#include "kernels/cuda/device_lengths.h"

namespace nsa::metadata::kernels::cuda {
namespace {

// So that a grid's strides over them stay within int32.
constexpr int64_t kMost = int64_t{1} << 29;

bool IsCount(int64_t count) { return count >= 0 && count <= kMost; }

bool IsDeviceKernel(Kernel kernel) {
  return kernel == Kernel::kLinear || kernel == Kernel::kBinary || kernel == Kernel::kRows || kernel == Kernel::kTile;
}

bool AreCounts(const DraftExtendMetadata& metadata) {
  return IsCount(metadata.num_sequences) && IsCount(metadata.capacity);
}

bool Valid(const DraftExtendMetadata& metadata) {
  if (!AreCounts(metadata)) return false;
  if (metadata.workspace == nullptr && DraftExtendWorkspaceBytes(metadata.num_sequences) > 0) return false;
  const bool has_lengths = metadata.extend_seq_lens != nullptr && metadata.seq_lens != nullptr;
  return has_lengths || metadata.num_sequences == 0;
}

bool AsksMoreThanFirstTwo(const OutputPointers& out) {
  return std::any_of(out.begin() + 2, out.end(), [](const int32_t* pointer) { return pointer != nullptr; });
}

}  // namespace

BatchSize SizeOf(const DraftExtendMetadata& metadata) {
  return {.num_sequences = static_cast<int32_t>(metadata.num_sequences),
          .num_requests = 1,
          .num_tokens = static_cast<int32_t>(metadata.capacity),
          .first_two = !AsksMoreThanFirstTwo(metadata.out)};
}

size_t DraftExtendWorkspaceBytes(int64_t num_sequences) {
  return SumsWorkspaceBytes(static_cast<int32_t>(num_sequences));
}

cudaError_t LaunchDraftExtendMetadata(const DraftExtendMetadata& metadata, Kernel kernel, cudaStream_t stream,
                                      const DoneFlags& done) {
  if (!Valid(metadata) || !IsDeviceKernel(kernel)) return cudaErrorInvalidValue;
  DeviceLengths lengths;
  lengths.extend_seq_lens = metadata.extend_seq_lens;
  lengths.seq_lens = metadata.seq_lens;
  lengths.size = SizeOf(metadata);
  lengths.request.nsa_index_topk = metadata.nsa_index_topk;
  lengths.request.mode = metadata.mode;
  std::copy(metadata.out.begin(), metadata.out.end(), lengths.request.out);
  return LaunchFromLengths(kernel, lengths, metadata.total_tokens, metadata.workspace, done, stream);
}

cudaError_t FillDraftExtendMetadata(const DraftExtendMetadata& metadata, Kernel kernel, cudaStream_t stream,
                                    FillWorkspace& workspace, int64_t* total_tokens) {
  if (!AreCounts(metadata) || !IsDeviceKernel(kernel)) return cudaErrorInvalidValue;
  if (const cudaError_t error = workspace.Prepare(DraftExtendWorkspaceBytes(metadata.num_sequences), stream);
      error != cudaSuccess) {
    return error;
  }
  DraftExtendMetadata launched = metadata;
  launched.total_tokens = workspace.total_tokens();
  launched.workspace = workspace.scratch();
  const int64_t blocks = NumBlocks(kernel, SizeOf(metadata));
  const DoneFlags done = workspace.NextFlags(blocks);
  cudaError_t error = LaunchDraftExtendMetadata(launched, kernel, stream, done);
  if (error == cudaSuccess) error = workspace.Wait(done, blocks, stream, total_tokens);
  if (error != cudaSuccess) workspace.Forget();
  return error;
}

Kernel ChooseKernel(const DraftExtendMetadata& metadata, const LaunchPlan& plan) {
  return kernels::ChooseKernel(plan, {.num_sequences = metadata.num_sequences,
                                      .total_tokens = metadata.capacity,
                                      .first_two = !AsksMoreThanFirstTwo(metadata.out),
                                      .to_host = false,
                                      .from_lengths = true});
}

cudaError_t FillDraftExtendMetadataAdaptive(const DraftExtendMetadata& metadata, cudaStream_t stream,
                                            FillWorkspace& workspace, int64_t* total_tokens, const LaunchPlan& plan) {
  return FillDraftExtendMetadata(metadata, ChooseKernel(metadata, plan), stream, workspace, total_tokens);
}

}  // namespace nsa::metadata::kernels::cuda
