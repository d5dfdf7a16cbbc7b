// What becomes of requests when a real device fails. A process's device fails once: each of these is to be run by
// itself.

#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "kernels/cuda/allocator.h"
#include "kernels/cuda/cuda_backend.h"
#include "tests/e2e/bad_kernels.h"
#include "tests/support/books.h"
#include "tests/support/rpc.h"
#include "tests/support/running_server.h"

namespace nsa::metadata {
namespace {

using ::testing::HasSubstr;
using testing::HttpGet;
using testing::MetricValue;
using testing::Reply;
using testing::RunningServer;
using testing::TestRequest;

class CudaFaultTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto device = kernels::CreateCudaBackend({});
    if (!device.ok()) GTEST_SKIP() << device.status().message();
    server::Options options = testing::LoopbackOptions();
    options.backend = "cuda";
    server_ = std::make_unique<RunningServer>(options);
    for (int id = 0; id < 4; ++id) callers_.emplace_back([this, id] { CallUntilStopped(id); });
    AwaitCalls(1'000);
  }

  // Calls with a deadline that is over long before a kernel that hangs is, and compares with the reference.
  void CallUntilStopped(int id) {
    const auto stub = server_->Stub();
    std::mt19937_64 random(id);
    while (!stop_) {
      TestRequest request = testing::RandomRequest(random, 100);
      request.spec.outputs.Add(kernels::Output::kSeqlensExpanded);  // none would mean the default ones
      const Reply reply = testing::Call(*stub, testing::ToProto(request), std::chrono::seconds(5));
      EXPECT_TRUE(reply.status.ok()) << reply.status.error_message();
      EXPECT_EQ(testing::ToArrays(reply.response), testing::ReferenceArrays(request));
      ++calls_;
    }
  }

  void AwaitCalls(int64_t more) const {
    const int64_t goal = calls_ + more;
    while (calls_ < goal) std::this_thread::yield();
  }

  // Serves on from the CPU, and has counted why.
  void ExpectServesFromTheCpu(const std::string& reason) {
    AwaitCalls(1'000);
    EXPECT_TRUE(server_->server().device_lost());
    const std::string text = HttpGet(server_->server().metrics_address(), "/metrics");
    EXPECT_GE(MetricValue(text, "nsa_metadata_backend_faults_total{backend=\"cuda\",reason=\"" + reason + "\"}"), 1);
    EXPECT_EQ(MetricValue(text, "nsa_metadata_backend_active{backend=\"cpu\"}"), 1);
    stop_ = true;
    for (std::thread& caller : callers_) caller.join();
    testing::ExpectNothingIsLeft(*server_);
    server_->server().Drain();
    EXPECT_FALSE(kernels::CreateCudaBackend({}).ok()) << "a device that has failed was taken again";
  }

  std::unique_ptr<RunningServer> server_;
  std::atomic<int64_t> calls_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> callers_;
};

TEST_F(CudaFaultTest, AKernelThatWritesOutOfBoundsCostsNoCallItsAnswer) {
  EXPECT_STREQ(testing::WriteOutOfBounds(), "cudaErrorIllegalAddress");
  ExpectServesFromTheCpu("device");
}

TEST_F(CudaFaultTest, AKernelThatHangsCostsNoCallItsAnswer) {
  EXPECT_STREQ(testing::OccupyDevice(10), "");
  ExpectServesFromTheCpu("timeout");
}

// Lacks memory once.
class Scarce final : public kernels::cuda::Allocator {
 public:
  // The `fails`th allocation does, the first is 1.
  explicit Scarce(int64_t fails) : fails_(fails) {}
  cudaError_t AllocatePinned(void** memory, size_t bytes, unsigned flags) override {
    if (++allocations_ == fails_) return cudaErrorMemoryAllocation;
    return Allocator::AllocatePinned(memory, bytes, flags);
  }
  cudaError_t AllocateDevice(void** memory, size_t bytes) override {
    if (++allocations_ == fails_) return cudaErrorMemoryAllocation;
    return Allocator::AllocateDevice(memory, bytes);
  }
  int64_t allocations() const { return allocations_; }

 private:
  const int64_t fails_;
  std::atomic<int64_t> allocations_{0};
};

TEST(CudaMemoryTest, AStartThatLacksAnyOfItsMemorySaysSoAndServingTakesNone) {
  if (const auto device = kernels::CreateCudaBackend({}); !device.ok()) GTEST_SKIP() << device.status().message();
  server::Options options = testing::LoopbackOptions();
  options.backend = "cuda";
  options.lanes = 2;
  bool started = false;
  for (int64_t fails = 1; !started; ++fails) {
    Scarce memory(fails);
    auto backend = kernels::CreateCudaBackend({.allocator = &memory});
    if (!backend.ok()) {
      EXPECT_EQ(backend.status().code(), absl::StatusCode::kResourceExhausted) << backend.status();
      EXPECT_THAT(backend.status().message(), HasSubstr("cudaErrorMemoryAllocation")) << "allocation " << fails;
      continue;
    }
    const auto server =
        server::Server::Start(options, {.backend = *std::move(backend), .failpoints = nullptr, .end = nullptr});
    started = server.ok();
    if (!started) {
      EXPECT_EQ(server.status().code(), absl::StatusCode::kResourceExhausted) << server.status();
      EXPECT_THAT(server.status().message(), HasSubstr("cudaErrorMemoryAllocation")) << "allocation " << fails;
      continue;
    }
    // Outputs and four lanes' three while its kernels are tried, the server's outputs, and two lanes' three.
    EXPECT_EQ(memory.allocations(), 1 + 4 * 3 + 1 + 2 * 3) << "where nothing was lacking";
    EXPECT_EQ(fails, memory.allocations() + 1) << "one that failed was not noticed";
    const auto stub = v1::MetadataService::NewStub(
        grpc::CreateChannel((*server)->listen_addresses().front(), grpc::InsecureChannelCredentials()));
    std::mt19937_64 random(1);
    const int64_t before = memory.allocations();
    for (int i = 0; i < 1'000; ++i) {
      TestRequest request = testing::RandomRequest(random, i % 10 == 0 ? 1'000 : 50);
      request.spec.outputs.Add(kernels::Output::kSeqlensExpanded);
      const Reply reply = testing::Call(*stub, testing::ToProto(request), std::chrono::seconds(5));
      ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
      EXPECT_EQ(testing::ToArrays(reply.response), testing::ReferenceArrays(request));
    }
    EXPECT_EQ(memory.allocations(), before) << "serving took memory";
  }
}

}  // namespace
}  // namespace nsa::metadata
