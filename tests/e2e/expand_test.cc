// Expansions through gRPC: what is right directly is right over the wire, alone or among others.

#include <gtest/gtest.h>

#include <atomic>
#include <random>
#include <thread>

#include "kernels/cuda/cuda_backend.h"
#include "tests/support/golden.h"
#include "tests/support/rpc.h"
#include "tests/support/running_server.h"

namespace nsa::metadata {
namespace {

using testing::Arrays;
using testing::Call;
using testing::Reply;
using testing::RunningServer;
using testing::TestRequest;

// What computes: a backend, and for a device its kernel.
struct Computing {
  const char* backend;
  const char* kernel;
};

void PrintTo(const Computing& computing, std::ostream* out) { *out << computing.backend << " " << computing.kernel; }

server::Options With(const Computing& computing) {
  server::Options options = testing::LoopbackOptions();
  options.backend = computing.backend;
  options.kernel = computing.kernel;
  return options;
}

class ExpandTest : public ::testing::TestWithParam<Computing> {
 protected:
  void SetUp() override {
    if (GetParam().backend == std::string("cuda")) {
      const auto device = kernels::CreateCudaBackend({});
      if (!device.ok()) GTEST_SKIP() << device.status().message();
    }
    server_ = std::make_unique<RunningServer>(With(GetParam()));
  }
  std::unique_ptr<RunningServer> server_;
};

TEST_P(ExpandTest, AgreesWithTheReferenceOnRandomRequests) {
  constexpr int kThreads = 4;
  constexpr int kRequests = 2'500;
  std::vector<std::thread> threads;
  for (int id = 0; id < kThreads; ++id) {
    threads.emplace_back([this, id] {
      const auto stub = server_->Stub();
      std::mt19937_64 random(id);
      for (int i = 0; i < kRequests; ++i) {
        TestRequest request = testing::RandomRequest(random, 30);
        request.spec.outputs.Add(kernels::Output::kSeqlensExpanded);  // none would mean the default ones
        const Reply reply = Call(*stub, testing::ToProto(request));
        ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
        ASSERT_EQ(testing::ToArrays(reply.response), testing::ReferenceArrays(request))
            << "request " << i << " of " << id;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST_P(ExpandTest, GivesEveryKnownAnswer) {
  const auto stub = server_->Stub();
  for (const testing::GoldenCase& golden : testing::GoldenCases()) {
    TestRequest request{.spec = {.nsa_index_topk = golden.nsa_index_topk, .mode = golden.mode, .outputs = {}},
                        .extend_seq_lens = golden.extend_seq_lens,
                        .seq_lens = golden.seq_lens};
    Arrays want;
    for (kernels::Output output : kernels::kAllOutputs) {
      const auto& expected = golden.expected[static_cast<size_t>(output)];
      if (!expected) continue;
      request.spec.outputs.Add(output);
      want[static_cast<size_t>(output)] = *expected;
    }
    const Reply reply = Call(*stub, testing::ToProto(request));
    ASSERT_TRUE(reply.status.ok()) << golden.name << ": " << reply.status.error_message();
    EXPECT_EQ(testing::ToArrays(reply.response), want) << golden.name;
    EXPECT_EQ(reply.response.total_tokens(), request.total_tokens()) << golden.name;
    EXPECT_EQ(static_cast<int>(reply.response.mode()), static_cast<int>(golden.mode)) << golden.name;
  }
}

TEST_P(ExpandTest, RefusesTheKnownOverflowsByName) {
  const auto stub = server_->Stub();
  int refused = 0;
  for (const testing::GoldenCase& golden : testing::GoldenCases()) {
    for (kernels::Output output : kernels::kAllOutputs) {
      if (golden.expected[static_cast<size_t>(output)]) continue;
      const TestRequest request{
          .spec = {.nsa_index_topk = golden.nsa_index_topk, .mode = golden.mode, .outputs = {output}},
          .extend_seq_lens = golden.extend_seq_lens,
          .seq_lens = golden.seq_lens};
      const Reply reply = Call(*stub, testing::ToProto(request));
      EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << golden.name;
      EXPECT_EQ(
          testing::ErrorInfoOf(reply.status).find(std::string("OUTPUT_OVERFLOW ") + kernels::OutputName(output) + " "),
          0u)
          << golden.name << ": " << testing::ErrorInfoOf(reply.status);
      ++refused;
    }
  }
  EXPECT_GT(refused, 0) << "the known answers hold no overflow";
}

INSTANTIATE_TEST_SUITE_P(Backends, ExpandTest,
                         ::testing::Values(Computing{"cpu", "adaptive"}, Computing{"reference", "adaptive"},
                                           Computing{"cuda", "linear"}, Computing{"cuda", "binary"},
                                           Computing{"cuda", "threshold"}, Computing{"cuda", "adaptive"}),
                         [](const auto& info) { return std::string(info.param.backend) + "_" + info.param.kernel; });

// One lane, and a delay so that requests meet.
TEST(BatchedExpandTest, ManyAtOnceAreEqualToTheSameAlone) {
  server::Options options = testing::LoopbackOptions();
  options.lanes = 1;
  options.batch.batch_delay = absl::Milliseconds(2);
  RunningServer batching(options);
  RunningServer alone;
  constexpr int kThreads = 16;
  constexpr int kRequests = 40;
  std::atomic<uint32_t> largest_batch{0};
  std::vector<std::thread> threads;
  for (int id = 0; id < kThreads; ++id) {
    threads.emplace_back([&, id] {
      const auto batched_stub = batching.Stub();
      const auto alone_stub = alone.Stub();
      std::mt19937_64 random(id);
      for (int i = 0; i < kRequests; ++i) {
        v1::ExpandRequest request = testing::ToProto(testing::RandomRequest(random, 16));
        request.set_request_id(random());
        const Reply want = Call(*alone_stub, request);
        request.set_include_timing(true);
        Reply got = Call(*batched_stub, request);
        ASSERT_TRUE(want.status.ok()) << want.status.error_message();
        ASSERT_TRUE(got.status.ok()) << got.status.error_message();
        uint32_t seen = largest_batch;
        while (seen < got.response.timing().batch_requests() &&
               !largest_batch.compare_exchange_weak(seen, got.response.timing().batch_requests())) {
        }
        got.response.clear_timing();
        ASSERT_EQ(got.response.SerializeAsString(), want.response.SerializeAsString())
            << "request " << i << " of thread " << id;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(largest_batch, 1u) << "nothing was batched, so nothing was shown";
}

TEST(TimingTest, IsThereWhenAskedFor) {
  RunningServer server;
  v1::ExpandRequest request;
  request.add_extend_seq_lens(3);
  request.add_seq_lens(3);
  request.set_nsa_index_topk(1);
  EXPECT_FALSE(Call(*server.Stub(), request).response.has_timing());
  request.set_include_timing(true);
  const v1::Timing timing = Call(*server.Stub(), request).response.timing();
  EXPECT_GT(timing.parse_ns(), 0u);
  EXPECT_GT(timing.device_ns(), 0u);
  EXPECT_EQ(timing.batch_requests(), 1u);
  EXPECT_EQ(timing.batch_tokens(), 3u);
  EXPECT_EQ(timing.backend(), v1::BACKEND_CPU);
}

TEST(GetServerInfoTest, SaysWhatItIsAndItsLimits) {
  server::Options options = With({"reference", "adaptive"});
  options.request.max_tokens = 1'000;
  RunningServer server(options);
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  const grpc::Status status = server.Stub()->GetServerInfo(&context, {}, &info);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(info.backend(), v1::BACKEND_REFERENCE);
  EXPECT_EQ(info.supported_outputs_size(), 9);
  EXPECT_EQ(info.supported_modes_size(), 2);
  EXPECT_EQ(info.limits().max_tokens(), 1'000);
  EXPECT_EQ(info.limits().output_budget_bytes(), 256 << 20);
}

}  // namespace
}  // namespace nsa::metadata
