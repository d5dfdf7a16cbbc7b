#include "tests/support/gated_backend.h"

#include <utility>

namespace nsa::metadata::testing {
namespace {

class GatedLane final : public kernels::Lane {
 public:
  GatedLane(Gate& gate, std::unique_ptr<kernels::Lane> lane) : gate_(gate), lane_(std::move(lane)) {}
  kernels::PackedBatch& batch() override { return lane_->batch(); }
  absl::Status Expand() override {
    gate_.Pass(static_cast<int>(batch().requests().size()));
    return lane_->Expand();
  }

 private:
  Gate& gate_;
  const std::unique_ptr<kernels::Lane> lane_;
};

class GatedBackend final : public kernels::Backend {
 public:
  explicit GatedBackend(Gate& gate) : gate_(gate) {}
  kernels::BackendKind kind() const override { return cpu_->kind(); }
  std::string device() const override { return "a gate before " + cpu_->device(); }
  absl::StatusOr<std::unique_ptr<kernels::Lane>> CreateLane(int64_t max_sequences) override {
    absl::StatusOr<std::unique_ptr<kernels::Lane>> lane = cpu_->CreateLane(max_sequences);
    if (!lane.ok()) return lane.status();
    return std::make_unique<GatedLane>(gate_, *std::move(lane));
  }
  absl::StatusOr<kernels::HostBuffer> AllocateOutput(size_t bytes) override { return cpu_->AllocateOutput(bytes); }

 private:
  Gate& gate_;
  const std::unique_ptr<kernels::Backend> cpu_ = kernels::CreateCpuBackend();
};

}  // namespace

void Gate::Open() {
  absl::MutexLock lock(&mutex_);
  open_ = true;
}

void Gate::AwaitStarted(int batches) {
  absl::MutexLock lock(&mutex_);
  const auto reached = [this, batches] { return started_ >= batches; };
  mutex_.Await(absl::Condition(&reached));
}

int Gate::requests() const {
  absl::MutexLock lock(&mutex_);
  return requests_;
}

void Gate::Pass(int requests) {
  absl::MutexLock lock(&mutex_);
  ++started_;
  requests_ += requests;
  mutex_.Await(absl::Condition(&open_));
}

std::unique_ptr<kernels::Backend> MakeGatedBackend(Gate& gate) { return std::make_unique<GatedBackend>(gate); }

}  // namespace nsa::metadata::testing
