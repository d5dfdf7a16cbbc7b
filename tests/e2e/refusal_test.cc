// Refusals over the wire, and that they cost nobody else anything.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>

#include "grpcpp/generic/generic_stub.h"
#include "tests/support/books.h"
#include "tests/support/gated_backend.h"
#include "tests/support/rpc.h"
#include "tests/support/running_server.h"

namespace nsa::metadata {
namespace {

using testing::Call;
using testing::ErrorInfoOf;
using testing::Reply;
using testing::RunningServer;

v1::ExpandRequest Good(int32_t tokens = 3) {
  v1::ExpandRequest request;
  request.add_extend_seq_lens(tokens);
  request.add_seq_lens(10);
  request.set_nsa_index_topk(2048);
  return request;
}

TEST(RefusalOverTheWireTest, CarriesCodeReasonFieldValueAndLimit) {
  RunningServer server;
  const auto stub = server.Stub();
  v1::ExpandRequest request = Good();
  request.set_seq_lens(0, -2);
  const Reply reply = Call(*stub, request);
  EXPECT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(ErrorInfoOf(reply.status), "NEGATIVE_LENGTH seq_lens[0] -2 0");
  EXPECT_EQ(Call(*stub, Good()).status.error_code(), grpc::StatusCode::OK) << "the connection was to stay";
}

TEST(RefusalOverTheWireTest, AMessageOverTheReceiveLimitIsRefusedByGrpc) {
  RunningServer server;
  v1::ExpandRequest request = Good();
  for (int i = 0; i < 200'000; ++i) {
    request.add_extend_seq_lens(1);
    request.add_seq_lens(1);
  }
  EXPECT_EQ(Call(*server.Stub(), request).status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
}

TEST(RefusalOverTheWireTest, MetadataOverTheLimitAreRefusedByName) {
  RunningServer server;
  grpc::ClientContext context;
  context.AddMetadata("x-large", std::string(9'000, 'x'));
  v1::ExpandResponse response;
  const grpc::Status status = server.Stub()->Expand(&context, Good(), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << status.error_message();
  EXPECT_EQ(ErrorInfoOf(status).find("METADATA_TOO_LARGE metadata 9"), 0u) << ErrorInfoOf(status);
}

TEST(RefusalOverTheWireTest, ACompressedMessageIsUnimplemented) {
  RunningServer server;
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  v1::ExpandRequest request = Good();
  for (int i = 0; i < 1'000; ++i) {  // enough for gRPC to compress it
    request.add_extend_seq_lens(1);
    request.add_seq_lens(1);
  }
  v1::ExpandResponse response;
  EXPECT_EQ(server.Stub()->Expand(&context, request, &response).error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

TEST(RefusalOverTheWireTest, AFullQueueRefusesWithPushbackAndAnswersTheOthers) {
  testing::Gate gate;
  server::Options options = testing::LoopbackOptions();
  options.lanes = 1;
  options.completion_queues = 2;
  options.batch.max_queue_requests = 1;
  RunningServer server(options, testing::MakeGatedBackend(gate));
  std::vector<std::thread> callers;
  std::atomic<int> answered{0};
  // One is in the lane, one in the queue, or will be: a call of the test's below may have come before it.
  for (int i = 0; i < 2; ++i) {
    callers.emplace_back([&] {
      const auto stub = server.Stub();
      grpc::Status status(grpc::StatusCode::UNAVAILABLE, "");
      while (status.error_code() == grpc::StatusCode::UNAVAILABLE) status = Call(*stub, Good()).status;
      if (status.ok()) ++answered;
    });
    gate.AwaitStarted(1);
  }
  grpc::ClientContext context;
  v1::ExpandResponse response;
  grpc::Status status;
  // Which thread of the server runs the lane decides whose queue answers; a call may wait behind it, so each has a
  // connection of its own.
  for (int tries = 0; tries < 50; ++tries) {
    grpc::ClientContext attempt;
    attempt.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(500));
    status = server.Stub()->Expand(&attempt, Good(), &response);
    if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
      const auto& trailers = attempt.GetServerTrailingMetadata();
      const auto pushback = trailers.find("grpc-retry-pushback-ms");
      ASSERT_NE(pushback, trailers.end());
      EXPECT_EQ(std::string(pushback->second.data(), pushback->second.size()), "50");
      break;
    }
  }
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_EQ(ErrorInfoOf(status), "QUEUE_FULL  1 1");
  gate.Open();
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(answered, 2);
}

TEST(RefusalOverTheWireTest, AFullBudgetRefusesWithTheBytesAsked) {
  testing::Gate gate;
  server::Options options = testing::LoopbackOptions();
  options.lanes = 2;
  options.completion_queues = 2;
  options.request.max_reply_bytes = 1 << 20;
  options.request.max_unary_reply_bytes = 1 << 20;
  options.output_budget_bytes = (1 << 20) + (1 << 16);
  RunningServer server(options, testing::MakeGatedBackend(gate));
  std::thread holder([&] { EXPECT_TRUE(Call(*server.Stub(), Good(120'000)).status.ok()); });
  gate.AwaitStarted(1);
  grpc::Status status;
  for (int tries = 0; tries < 50 && status.error_code() != grpc::StatusCode::UNAVAILABLE; ++tries) {
    status = Call(*server.Stub(), Good(120'000), std::chrono::milliseconds(500)).status;
  }
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE) << status.error_message();
  EXPECT_EQ(ErrorInfoOf(status).find("BUDGET_FULL  960"), 0u) << ErrorInfoOf(status);
  gate.Open();
  holder.join();
}

// Waits until a request is in `server`'s queue, for as long as that may take; whether one is.
bool AwaitQueued(RunningServer& server) {
  const auto queued = [&] {
    return testing::MetricValue(testing::HttpGet(server.server().metrics_address(), "/metrics"),
                                "nsa_metadata_queue_requests");
  };
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (queued() < 1) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
  return true;
}

TEST(RefusalOverTheWireTest, ARequestWhoseDeadlinePassesInTheQueueIsNotLaunched) {
  testing::Gate gate;
  server::Options options = testing::LoopbackOptions();
  options.lanes = 1;
  RunningServer server(options, testing::MakeGatedBackend(gate));
  std::thread holder([&] { EXPECT_TRUE(Call(*server.Stub(), Good()).status.ok()); });
  gate.AwaitStarted(1);
  constexpr std::chrono::milliseconds kDeadline(500);
  grpc::Status status;
  std::thread late([&] { status = Call(*server.Stub(), Good(), kDeadline).status; });
  EXPECT_TRUE(AwaitQueued(server));
  // The server's deadline is later than the caller's by the time that the request was on its way, and no later than
  // this: it began before the request was seen in the queue.
  const auto expired = std::chrono::steady_clock::now() + kDeadline + std::chrono::milliseconds(10);
  late.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << status.error_message();
  std::this_thread::sleep_until(expired);
  gate.Open();
  holder.join();
  EXPECT_TRUE(Call(*server.Stub(), Good()).status.ok());
  const testing::Books books = testing::ExpectNothingIsLeft(server);
  EXPECT_EQ(books.admitted, 3);
  EXPECT_EQ(books.launched, 2) << "the expired request was launched";
}

TEST(RefusalOverTheWireTest, ARequestWhoseTimeInTheServerPassesInTheQueueIsNotLaunched) {
  testing::Gate gate;
  server::Options options = testing::LoopbackOptions();
  options.lanes = 1;
  options.max_rpc_duration = absl::Milliseconds(500);
  RunningServer server(options, testing::MakeGatedBackend(gate));
  std::thread holder([&] { EXPECT_TRUE(Call(*server.Stub(), Good()).status.ok()); });
  gate.AwaitStarted(1);
  grpc::Status status;
  std::thread late([&] { status = Call(*server.Stub(), Good()).status; });
  EXPECT_TRUE(AwaitQueued(server));
  std::this_thread::sleep_for(std::chrono::milliseconds(510));  // its time passes
  gate.Open();
  holder.join();
  late.join();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED) << status.error_message();
  EXPECT_THAT(ErrorInfoOf(status), ::testing::MatchesRegex("DEADLINE  [0-9]+ 500"));
  EXPECT_THAT(status.error_message(), ::testing::HasSubstr("max_rpc_duration passed"));
  EXPECT_THAT(status.error_message(), ::testing::HasSubstr("it had 500ms"));
  EXPECT_EQ(gate.requests(), 1) << "the expired request was launched";
}

TEST(RefusalOverTheWireTest, BadRequestsChangeNothingForGoodOnes) {
  RunningServer server;
  constexpr int kThreads = 11;
  std::vector<std::thread> threads;
  std::atomic<int> good{0};
  std::atomic<int> refused{0};
  for (int id = 0; id < kThreads; ++id) {
    threads.emplace_back([&, id] {
      const auto stub = server.Stub();
      std::mt19937_64 random(id);
      for (int i = 0; i < 100; ++i) {
        const bool bad = id == 0;
        const testing::TestRequest drawn = testing::RandomRequest(random, 16);
        v1::ExpandRequest request = testing::ToProto(drawn);
        if (bad) request.add_seq_lens(i);
        const Reply reply = Call(*stub, request);
        if (bad) {
          ASSERT_EQ(reply.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
          ++refused;
        } else if (!drawn.spec.outputs.empty()) {
          ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
          ASSERT_EQ(testing::ToArrays(reply.response), testing::ReferenceArrays(drawn));
          ++good;
        } else {
          ++good;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(refused, 100);
  EXPECT_EQ(good, 1'000);
}

}  // namespace
}  // namespace nsa::metadata
