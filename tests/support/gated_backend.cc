#include "tests/support/gated_backend.h"

#include <utility>

namespace nsa::metadata::testing {
namespace {

class GatedLane final : public kernels::Lane {
 public:
  GatedLane(Gate& gate, std::unique_ptr<kernels::Lane> lane) : gate_(gate), lane_(std::move(lane)) {}
  kernels::RequestBatch& batch() override { return lane_->batch(); }
  absl::StatusOr<kernels::Kernel> Expand() override {
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
  absl::StatusOr<std::unique_ptr<kernels::Lane>> CreateLane(const kernels::LaneLimits& limits) override {
    absl::StatusOr<std::unique_ptr<kernels::Lane>> lane = cpu_->CreateLane(limits);
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
  server::MutexLock lock(&mutex_);
  open_ = true;
  changed_.SignalAll();
}

void Gate::AwaitStarted(int batches) {
  server::MutexLock lock(&mutex_);
  while (started_ < batches) changed_.Wait(mutex_);
}

int Gate::requests() const {
  server::MutexLock lock(&mutex_);
  return requests_;
}

void Gate::Pass(int requests) {
  server::MutexLock lock(&mutex_);
  ++started_;
  requests_ += requests;
  changed_.SignalAll();
  while (!open_) changed_.Wait(mutex_);
}

std::unique_ptr<kernels::Backend> MakeGatedBackend(Gate& gate) { return std::make_unique<GatedBackend>(gate); }

}  // namespace nsa::metadata::testing
