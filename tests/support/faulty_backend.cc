#include "tests/support/faulty_backend.h"

#include <cstdlib>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/outputs.h"
#include "server/mutex.h"

namespace nsa::metadata::testing {
namespace {

// Writes what no expansion holds wherever it was told to, again and again.
class Scribbler {
 public:
  explicit Scribbler(std::atomic<int64_t>& rounds) : rounds_(rounds) {}
  ~Scribbler() {
    stop_ = true;
    if (thread_.joinable()) thread_.join();
  }

  // Begins with the outputs of `batch`.
  void WriteTo(const kernels::RequestBatch& batch) {
    server::MutexLock lock(&mutex_);
    for (const kernels::BatchedRequest& request : batch.requests()) {
      for (kernels::Output output : kernels::kAllOutputs) {
        if (!request.spec.outputs.Has(output)) continue;
        spans_.emplace_back(request.out[static_cast<size_t>(output)],
                            kernels::OutputLength(output, request.num_sequences, request.total_tokens));
      }
    }
    if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
  }

 private:
  void Run() {
    while (!stop_) {
      {
        server::MutexLock lock(&mutex_);
        for (const auto& [values, count] : spans_) {
          for (int64_t i = 0; i < count; ++i) static_cast<volatile int32_t*>(values)[i] = -77;
        }
      }
      ++rounds_;
      std::this_thread::yield();
    }
  }

  std::atomic<int64_t>& rounds_;
  server::Mutex mutex_;
  std::vector<std::pair<int32_t*, int64_t>> spans_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

class FaultyLane final : public kernels::Lane {
 public:
  FaultyLane(Faults& faults, Scribbler& scribbler, std::unique_ptr<kernels::Lane> lane)
      : faults_(faults), scribbler_(scribbler), lane_(std::move(lane)) {}
  kernels::RequestBatch& batch() override { return lane_->batch(); }
  absl::StatusOr<kernels::Kernel> Expand() override {
    const int64_t number = ++faults_.batches;
    if (faults_.fail_at != 0 && number >= faults_.fail_at) {
      std::this_thread::sleep_for(faults_.time_to_fail);
      scribbler_.WriteTo(batch());
      return faults_.fault;
    }
    if (faults_.leak > 0) *static_cast<volatile char*>(std::malloc(faults_.leak)) = 1;
    if (faults_.batch_time > std::chrono::nanoseconds::zero()) std::this_thread::sleep_for(faults_.batch_time);
    if (absl::StatusOr<kernels::Kernel> done = lane_->Expand(); !done.ok()) return done;
    return kernels::Kernel::kRows;
  }

 private:
  Faults& faults_;
  Scribbler& scribbler_;
  const std::unique_ptr<kernels::Lane> lane_;
};

class FaultyBackend final : public kernels::Backend {
 public:
  explicit FaultyBackend(Faults& faults) : faults_(faults) {}
  kernels::BackendKind kind() const override { return kernels::BackendKind::kCuda; }
  std::string device() const override { return "a device that fails when it is told to"; }
  absl::StatusOr<std::unique_ptr<kernels::Lane>> CreateLane(const kernels::LaneLimits& limits) override {
    if (absl::Status status = Allocate(); !status.ok()) return status;
    absl::StatusOr<std::unique_ptr<kernels::Lane>> lane = cpu_->CreateLane(limits);
    if (!lane.ok()) return lane.status();
    return std::make_unique<FaultyLane>(faults_, scribbler_, *std::move(lane));
  }
  absl::StatusOr<kernels::HostBuffer> AllocateOutput(size_t bytes) override {
    if (absl::Status status = Allocate(); !status.ok()) return status;
    absl::StatusOr<kernels::HostBuffer> memory = cpu_->AllocateOutput(bytes);
    if (!memory.ok()) return memory.status();
    // As with a device that hangs, it is there for as long as something may write to it.
    memory_.push_back(*std::move(memory));
    return kernels::HostBuffer(memory_.back().data(), bytes, [](void*, size_t) {});
  }

 private:
  absl::Status Allocate() {
    if (++faults_.allocations != faults_.fail_allocation) return absl::OkStatus();
    return absl::ResourceExhaustedError("an injected want of memory");
  }

  Faults& faults_;
  const std::unique_ptr<kernels::Backend> cpu_ = kernels::CreateCpuBackend();
  std::vector<kernels::HostBuffer> memory_;
  Scribbler scribbler_{faults_.scribbles};
};

}  // namespace

std::unique_ptr<kernels::Backend> MakeFaultyBackend(Faults& faults) { return std::make_unique<FaultyBackend>(faults); }

}  // namespace nsa::metadata::testing
