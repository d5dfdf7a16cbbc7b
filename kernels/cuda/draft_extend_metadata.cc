#include "kernels/cuda/draft_extend_metadata.h"

#include <algorithm>

#include "kernels/cuda/device_batch.h"
#include "kernels/cuda/search_kernels.h"

namespace nsa::metadata::kernels::cuda {
namespace {

// The workspace's parts: the total, or the running sums whose last is the total.
struct Workspace {
  explicit Workspace(const DraftExtendMetadata& metadata)
      : first_tokens(static_cast<int64_t*>(metadata.workspace)),
        sums_before(reinterpret_cast<SumsBefore*>(first_tokens + metadata.num_sequences + 1)) {}

  int64_t* first_tokens;    // [num_sequences + 1]
  SumsBefore* sums_before;  // [num_sequences]
};

DeviceBatch BatchOf(const DraftExtendMetadata& metadata, const Workspace& workspace) {
  DeviceBatch batch;
  batch.extend_seq_lens = metadata.extend_seq_lens;
  batch.seq_lens = metadata.seq_lens;
  batch.first_tokens = workspace.first_tokens;
  batch.sums_before = workspace.sums_before;
  batch.only_request.nsa_index_topk = metadata.nsa_index_topk;
  batch.only_request.mode = metadata.mode;
  std::copy(metadata.out.begin(), metadata.out.end(), batch.only_request.out);
  batch.num_sequences = metadata.num_sequences;
  batch.capacity = metadata.capacity;
  return batch;
}

bool Valid(const DraftExtendMetadata& metadata) {
  if (metadata.num_sequences < 0 || metadata.capacity < 0 || metadata.workspace == nullptr) return false;
  const bool has_lengths = metadata.extend_seq_lens != nullptr && metadata.seq_lens != nullptr;
  return has_lengths || metadata.num_sequences == 0;
}

}  // namespace

size_t DraftExtendWorkspaceBytes(int64_t num_sequences) {
  return static_cast<size_t>(num_sequences + 1) * (sizeof(int64_t) + sizeof(SumsBefore));
}

cudaError_t FillDraftExtendMetadata(const DraftExtendMetadata& metadata, Search search, cudaStream_t stream,
                                    int64_t* total_tokens) {
  if (!Valid(metadata)) return cudaErrorInvalidValue;
  const Workspace workspace(metadata);
  const DeviceBatch batch = BatchOf(metadata, workspace);
  const int64_t* total = nullptr;
  cudaError_t error = cudaSuccess;
  if (search == Search::kBinary) {
    error = LaunchSums(batch, workspace.first_tokens, workspace.sums_before, stream);
    if (error == cudaSuccess) error = LaunchBinary(batch, metadata.capacity, stream);
    total = workspace.first_tokens + metadata.num_sequences;
  } else {
    error = LaunchTotal(batch, workspace.first_tokens, stream);
    if (error == cudaSuccess) error = LaunchLinear(batch, metadata.capacity, stream);
    total = workspace.first_tokens;
  }
  if (error == cudaSuccess) {
    error = cudaMemcpyAsync(total_tokens, total, sizeof *total, cudaMemcpyDeviceToHost, stream);
  }
  return error == cudaSuccess ? cudaStreamSynchronize(stream) : error;
}

cudaError_t FillDraftExtendMetadataAdaptive(const DraftExtendMetadata& metadata, cudaStream_t stream,
                                            int64_t* total_tokens, int64_t threshold) {
  const Search search = metadata.num_sequences <= threshold ? Search::kLinear : Search::kBinary;
  return FillDraftExtendMetadata(metadata, search, stream, total_tokens);
}

}  // namespace nsa::metadata::kernels::cuda
