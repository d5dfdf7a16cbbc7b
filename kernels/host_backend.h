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

// Expands with one function.
class HostLane final : public Lane {
 public:
  HostLane(Kernel kernel, ExpandRequestFunction expand, const LaneLimits& limits)
      : kernel_(kernel),
        expand_(expand),
        extend_seq_lens_(limits.max_sequences),
        seq_lens_(limits.max_sequences),
        batch_(extend_seq_lens_, seq_lens_, limits.max_requests) {}

  PackedBatch& batch() override { return batch_; }

  absl::StatusOr<Kernel> Expand() override {
    batch_.ForEach(expand_);
    return kernel_;
  }

 private:
  const Kernel kernel_;
  const ExpandRequestFunction expand_;
  std::vector<int32_t> extend_seq_lens_;
  std::vector<int32_t> seq_lens_;
  PackedBatch batch_;
};

class HostBackend final : public Backend {
 public:
  HostBackend(BackendKind kind, std::string device, Kernel kernel, ExpandRequestFunction expand)
      : kind_(kind), device_(std::move(device)), kernel_(kernel), expand_(expand) {}

  BackendKind kind() const override { return kind_; }
  std::string device() const override { return device_; }
  absl::StatusOr<std::unique_ptr<Lane>> CreateLane(const LaneLimits& limits) override {
    return std::make_unique<HostLane>(kernel_, expand_, limits);
  }
  absl::StatusOr<HostBuffer> AllocateOutput(size_t bytes) override { return AllocatePageable(bytes); }

 private:
  const BackendKind kind_;
  const std::string device_;
  const Kernel kernel_;
  const ExpandRequestFunction expand_;
};

}  // namespace nsa::metadata::kernels
