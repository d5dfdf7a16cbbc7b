// The parts that backends computing on the host share.
#pragma once

#include <memory>
#include <string>
#include <utility>

#include "kernels/backend.h"

namespace nsa::metadata::kernels {

// Writes the asked outputs of one request.
using ExpandRequestFunction = void (*)(const BatchedRequest& request);

// Expands with one function.
class HostLane final : public Lane {
 public:
  HostLane(Kernel kernel, ExpandRequestFunction expand, const LaneLimits& limits)
      : kernel_(kernel), expand_(expand), batch_(limits.max_sequences, limits.max_requests) {}

  RequestBatch& batch() override { return batch_; }

  absl::StatusOr<Kernel> Expand() override {
    for (const BatchedRequest& request : batch_.requests()) expand_(request);
    return kernel_;
  }

 private:
  const Kernel kernel_;
  const ExpandRequestFunction expand_;
  RequestBatch batch_;
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
