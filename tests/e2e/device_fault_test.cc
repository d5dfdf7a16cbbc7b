// What becomes of requests when the device fails.

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "tests/support/books.h"
#include "tests/support/faulty_backend.h"
#include "tests/support/rpc.h"
#include "tests/support/running_server.h"

namespace nsa::metadata {
namespace {

using testing::Call;
using testing::Faults;
using testing::HttpGet;
using testing::MetricValue;
using testing::Reply;
using testing::RunningServer;
using testing::TestRequest;

// Calls once and compares with the reference.
void ExpectRight(v1::MetadataService::Stub& stub, std::mt19937_64& random) {
  TestRequest request = testing::RandomRequest(random, 30);
  request.spec.outputs.Add(kernels::Output::kSeqlensExpanded);  // none would mean the default ones
  const Reply reply = Call(stub, testing::ToProto(request));
  ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
  ASSERT_EQ(testing::ToArrays(reply.response), testing::ReferenceArrays(request));
}

v1::GetServerInfoResponse Info(v1::MetadataService::Stub& stub) {
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  const grpc::Status status = stub.GetServerInfo(&context, {}, &info);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return info;
}

struct Case {
  const char* reason;
  absl::Status fault;
};

void PrintTo(const Case& fault, std::ostream* out) { *out << fault.reason; }

class DeviceFaultTest : public ::testing::TestWithParam<Case> {};

TEST_P(DeviceFaultTest, TheBatchAtHandAndAllLaterOnesAreAnsweredByTheCpu) {
  Faults faults;
  faults.fault = GetParam().fault;
  faults.fail_at = 4;
  RunningServer server(testing::LoopbackOptions(), testing::MakeFaultyBackend(faults));
  const auto stub = server.Stub();
  std::mt19937_64 random(1);
  for (int i = 0; i < 3; ++i) ExpectRight(*stub, random);
  EXPECT_EQ(Info(*stub).backend(), v1::BACKEND_CUDA);
  EXPECT_FALSE(server.server().device_lost());
  for (int i = 0; i < 100; ++i) ExpectRight(*stub, random);
  EXPECT_TRUE(server.server().device_lost());
  EXPECT_EQ(faults.batches, 4) << "a device that has failed was used again";
  EXPECT_EQ(Info(*stub).backend(), v1::BACKEND_CPU);
  const std::string text = HttpGet(server.server().metrics_address(), "/metrics");
  EXPECT_EQ(MetricValue(text, std::string("nsa_metadata_backend_faults_total{backend=\"cuda\",reason=\"") +
                                  GetParam().reason + "\"}"),
            1);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_backend_active{backend=\"cpu\"}"), 1);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_backend_active{backend=\"cuda\"}"), 0);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_kernel_launches_total{kernel=\"rows\"}"), 3);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_kernel_launches_total{kernel=\"cpu\"}"), 100);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_refused_total{reason=\"internal\"}"), 0);
}

INSTANTIATE_TEST_SUITE_P(Reasons, DeviceFaultTest,
                         ::testing::Values(Case{"device", absl::UnavailableError("an illegal address")},
                                           Case{"memory", absl::ResourceExhaustedError("no memory")},
                                           Case{"timeout", absl::DeadlineExceededError("too long")}),
                         [](const auto& info) { return std::string(info.param.reason); });

// Holds replies back until a device that has failed has written over all that it may write to.
class AfterScribbling final : public server::Failpoints {
 public:
  explicit AfterScribbling(Faults& faults) : faults_(faults) {}
  void Reached(server::Step step) override {
    if (step != server::Step::kReplying || faults_.batches < faults_.fail_at) return;
    // The round that is under way may have begun before the reply was written.
    const int64_t twice = faults_.scribbles + 2;
    while (faults_.scribbles < twice) std::this_thread::yield();
  }

 private:
  Faults& faults_;
};

TEST(DeviceFaultTest, WhatAFailedDeviceMayStillWriteReachesNobody) {
  Faults faults;
  faults.fail_at = 50;  // in the midst of many callers' batches, which fail in several lanes at once
  AfterScribbling failpoints(faults);
  RunningServer server(testing::LoopbackOptions(), testing::MakeFaultyBackend(faults), &failpoints);
  std::vector<std::thread> callers;
  for (int id = 0; id < 8; ++id) {
    callers.emplace_back([&server, id] {
      const auto stub = server.Stub();
      std::mt19937_64 random(id);
      for (int i = 0; i < 200; ++i) ExpectRight(*stub, random);
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_TRUE(server.server().device_lost());
  testing::ExpectNothingIsLeft(server);
}

TEST(DeviceFaultTest, ABatchThatHangsIsAnsweredWithinItsDeadline) {
  Faults faults;
  faults.fail_at = 1;
  faults.fault = absl::DeadlineExceededError("too long");
  faults.time_to_fail = std::chrono::milliseconds(100);
  RunningServer server(testing::LoopbackOptions(), testing::MakeFaultyBackend(faults));
  std::mt19937_64 random(1);
  ExpectRight(*server.Stub(), random);
}

TEST(DeviceFaultTest, ServesWithTheWholeBudgetAfterwards) {
  Faults faults;
  faults.fail_at = 1;
  server::Options options = testing::LoopbackOptions();
  options.request.max_reply_bytes = 1 << 20;
  options.request.max_unary_reply_bytes = 1 << 20;
  options.output_budget_bytes = (1 << 20) + (64 << 10);
  RunningServer server(options, testing::MakeFaultyBackend(faults));
  const auto stub = server.Stub();
  v1::ExpandRequest request;  // nearly all of the budget
  request.add_extend_seq_lens(130'000);
  request.add_seq_lens(130'000);
  request.set_nsa_index_topk(2048);
  for (int i = 0; i < 3; ++i) {
    const Reply reply = Call(*stub, request);
    ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
    EXPECT_EQ(reply.response.seqlens_expanded_size(), 130'000);
    // A moment after the client has the answer.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (server.server().output_blocks_in_use() > 0) {
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "the reply's blocks are not given back";
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }
}

TEST(DeviceFaultTest, EndsOnceWhereItIsToldTo) {
  Faults faults;
  faults.fail_at = 1;
  std::atomic<int> ends{0};
  server::Options options = testing::LoopbackOptions();
  for (const char* action : {"cpu", "exit"}) {
    options.on_gpu_fault = action;
    auto server = server::Server::Start(
        options, {.backend = testing::MakeFaultyBackend(faults), .failpoints = nullptr, .end = [&ends] { ++ends; }});
    ASSERT_TRUE(server.ok()) << server.status();
    const auto stub = v1::MetadataService::NewStub(
        grpc::CreateChannel((*server)->listen_addresses().front(), grpc::InsecureChannelCredentials()));
    std::mt19937_64 random(1);
    for (int i = 0; i < 3; ++i) ExpectRight(*stub, random);
    EXPECT_EQ(ends, action == std::string("exit") ? 1 : 0) << action;
  }
}

TEST(DeviceFaultTest, AStartThatLacksMemoryEndsSayingSoAndTheNextOneServes) {
  server::Options options = testing::LoopbackOptions();
  options.backend = "cuda";
  options.lanes = 3;
  constexpr int kAllocations = 4;  // the outputs', and one a lane
  for (int fails = 1; fails <= kAllocations + 1; ++fails) {
    Faults faults;
    faults.fail_allocation = fails;
    const auto server = server::Server::Start(
        options, {.backend = testing::MakeFaultyBackend(faults), .failpoints = nullptr, .end = nullptr});
    if (fails <= kAllocations) {
      EXPECT_EQ(server.status().code(), absl::StatusCode::kResourceExhausted) << "allocation " << fails;
      EXPECT_EQ(server.status().message(), "an injected want of memory") << "allocation " << fails;
    } else {
      EXPECT_TRUE(server.ok()) << server.status();
      const int64_t before = faults.allocations;
      const auto stub = v1::MetadataService::NewStub(
          grpc::CreateChannel((*server)->listen_addresses().front(), grpc::InsecureChannelCredentials()));
      std::mt19937_64 random(1);
      for (int i = 0; i < 100; ++i) ExpectRight(*stub, random);
      EXPECT_EQ(faults.allocations, before) << "the backend was asked for memory while the server served";
    }
  }
}

TEST(DeviceFaultTest, ADeviceThatLacksMemoryAtTheStartIsLeftForTheCpuWhereThatIsAllowed) {
  Faults faults;
  faults.fail_allocation = 2;
  RunningServer server(testing::LoopbackOptions(), testing::MakeFaultyBackend(faults));  // --backend=auto
  const auto stub = server.Stub();
  std::mt19937_64 random(1);
  ExpectRight(*stub, random);
  EXPECT_EQ(Info(*stub).backend(), v1::BACKEND_CPU);
}

}  // namespace
}  // namespace nsa::metadata
