// The parts that backends computing on the host share.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/backend.h"

namespace nsa::metadata::kernels {

// Writes the asked outputs of one request, whose lengths are [num_sequences] each.
using ExpandRequestFunction = void (*)(const PackedRequest& request, const int32_t* extend_seq_lens,
                                       const int32_t* seq_lens);

// Expands request after request with one function.
class HostLane final : public Lane {
 public:
  HostLane(ExpandRequestFunction expand, int64_t max_sequences)
      : expand_(expand),
        extend_seq_lens_(max_sequences),
        seq_lens_(max_sequences),
        batch_(extend_seq_lens_, seq_lens_) {}

  PackedBatch& batch() override { return batch_; }

  absl::Status Expand() override {
    for (const PackedRequest& request : batch_.requests()) {
      expand_(request, batch_.extend_seq_lens().data() + request.first_sequence,
              batch_.seq_lens().data() + request.first_sequence);
    }
    return absl::OkStatus();
  }

 private:
  ExpandRequestFunction expand_;
  std::vector<int32_t> extend_seq_lens_;
  std::vector<int32_t> seq_lens_;
  PackedBatch batch_;
};

class HostBackend final : public Backend {
 public:
  HostBackend(BackendKind kind, std::string device, ExpandRequestFunction expand)
      : kind_(kind), device_(std::move(device)), expand_(expand) {}

  BackendKind kind() const override { return kind_; }
  std::string device() const override { return device_; }
  absl::StatusOr<std::unique_ptr<Lane>> CreateLane(int64_t max_sequences) override {
    return std::make_unique<HostLane>(expand_, max_sequences);
  }
  absl::StatusOr<HostBuffer> AllocateOutput(size_t bytes) override { return AllocatePageable(bytes); }

 private:
  BackendKind kind_;
  std::string device_;
  ExpandRequestFunction expand_;
};

}  // namespace nsa::metadata::kernels
