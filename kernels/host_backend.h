// The parts that backends computing on the host share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "kernels/backend.h"

namespace nsa::metadata::kernels {

// Writes the asked outputs of one request, whose lengths are [num_sequences] each.
using ExpandRequestFunction = void (*)(const PackedRequest& request, const int32_t* extend_seq_lens,
                                       const int32_t* seq_lens);

// Expands with one function.
class HostLane final : public Lane {
 public:
  // `lengths`: PackedBatch::LengthsBytes of the most sequences.
  HostLane(Kernel kernel, ExpandRequestFunction expand, const LaneLimits& limits, HostBuffer lengths)
      : kernel_(kernel),
        expand_(expand),
        lengths_(std::move(lengths)),
        batch_(reinterpret_cast<int32_t*>(lengths_.data()), limits.max_sequences, limits.max_requests) {}

  PackedBatch& batch() override { return batch_; }

  absl::StatusOr<Kernel> Expand() override {
    batch_.ForEach(expand_);
    return kernel_;
  }

 private:
  const Kernel kernel_;
  const ExpandRequestFunction expand_;
  const HostBuffer lengths_;
  PackedBatch batch_;
};

class HostBackend final : public Backend {
 public:
  HostBackend(BackendKind kind, std::string device, Kernel kernel, ExpandRequestFunction expand)
      : kind_(kind), device_(std::move(device)), kernel_(kernel), expand_(expand) {}

  BackendKind kind() const override { return kind_; }
  std::string device() const override { return device_; }
  absl::StatusOr<std::unique_ptr<Lane>> CreateLane(const LaneLimits& limits) override {
    absl::StatusOr<HostBuffer> lengths =
        AllocatePageable(std::max<size_t>(PackedBatch::LengthsBytes(limits.max_sequences), 1));
    if (!lengths.ok()) return lengths.status();
    return std::make_unique<HostLane>(kernel_, expand_, limits, *std::move(lengths));
  }
  absl::StatusOr<HostBuffer> AllocateOutput(size_t bytes) override { return AllocatePageable(bytes); }

 private:
  const BackendKind kind_;
  const std::string device_;
  const Kernel kernel_;
  const ExpandRequestFunction expand_;
};

}  // namespace nsa::metadata::kernels
