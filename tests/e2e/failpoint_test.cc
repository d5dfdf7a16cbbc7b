// Callers that give up, and deadlines that pass, at each step of a request's way.

#include <gtest/gtest.h>

#include <array>
#include <ostream>
#include <sstream>
#include <string>
#include <thread>

#include "tests/support/books.h"
#include "tests/support/halt.h"
#include "tests/support/rpc.h"
#include "tests/support/running_server.h"

namespace nsa::metadata {

namespace server {

void PrintTo(Step step, std::ostream* out) {
  *out << std::array{"Enqueued", "BatchClosed", "Uploaded", "KernelDone", "Replying"}[static_cast<size_t>(step)];
}

}  // namespace server

namespace {

using server::Step;
using testing::Books;
using testing::Halt;
using testing::RunningServer;

class FailpointTest : public ::testing::TestWithParam<Step> {
 protected:
  // The first request stops at the step.
  Halt halt_{GetParam()};
  RunningServer server_{testing::LoopbackOptions(), nullptr, &halt_};
  const bool launched_ = GetParam() != Step::kEnqueued;
};

TEST_P(FailpointTest, ACallerThatGivesUpIsLetGoAtOnceAndNothingIsLeftOfItsCall) {
  const auto stub = server_.Stub();
  grpc::ClientContext context;
  grpc::Status status;
  std::thread caller([&] {
    v1::ExpandResponse response;
    status = stub->Expand(&context, testing::SmallRequest(), &response);
  });
  halt_.AwaitHalted();
  context.TryCancel();
  caller.join();  // though its request still stands
  EXPECT_EQ(status.error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_EQ(server_.server().live_calls(), 1);
  halt_.Release();
  const Books books = testing::ExpectNothingIsLeft(server_);
  EXPECT_EQ(books.admitted, 1);
  if (launched_) {
    EXPECT_EQ(books.launched, 1);
  }
  EXPECT_TRUE(testing::Call(*stub, testing::SmallRequest()).status.ok()) << "the next caller's";
}

TEST_P(FailpointTest, ADeadlineThatPassesEndsTheCallAtOnceAndNothingIsLeftOfIt) {
  const auto stub = server_.Stub();
  {
    grpc::ClientContext context;  // the connection is there before the deadline counts
    v1::GetServerInfoResponse info;
    ASSERT_TRUE(stub->GetServerInfo(&context, {}, &info).ok());
  }
  const grpc::Status status = testing::Call(*stub, testing::SmallRequest(), std::chrono::seconds(1)).status;
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  halt_.AwaitHalted();
  // The server's began with the request's arrival.
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  EXPECT_EQ(server_.server().live_calls(), 1);
  halt_.Release();
  const Books books = testing::ExpectNothingIsLeft(server_);
  EXPECT_EQ(books.admitted, 1);
  // Whether the work was still to begin is known by the deadline itself, not by what gRPC delivers.
  EXPECT_EQ(books.expired, launched_ ? 0 : 1);
  EXPECT_EQ(books.launched, launched_ ? 1 : 0);
}

TEST_P(FailpointTest, AnAbandonedStreamIsLetGoAndNothingIsLeftOfItsItems) {
  const auto stub = server_.Stub();
  grpc::ClientContext context;
  const auto stream = stub->ExpandStream(&context);
  for (uint64_t id = 1; id <= 5; ++id) {
    v1::ExpandStreamRequest item;
    *item.mutable_expand() = testing::SmallRequest();
    item.mutable_expand()->set_request_id(id);
    ASSERT_TRUE(stream->Write(item));
  }
  halt_.AwaitHalted();
  context.TryCancel();
  v1::ExpandStreamResponse answer;
  while (stream->Read(&answer)) continue;
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::CANCELLED);
  halt_.Release();
  EXPECT_GE(testing::ExpectNothingIsLeft(server_).admitted, 1);
}

TEST_P(FailpointTest, ADrainWaitsForWhatStandsThere) {
  const auto stub = server_.Stub();
  grpc::Status status;
  std::thread caller([&] { status = testing::Call(*stub, testing::SmallRequest()).status; });
  halt_.AwaitHalted();
  std::thread drain([&] { server_.server().Drain(); });
  while (testing::HttpGet(server_.server().metrics_address(), "/readyz").find("503") == std::string::npos) {
    std::this_thread::yield();
  }
  EXPECT_EQ(server_.server().live_calls(), 1);
  halt_.Release();
  caller.join();
  drain.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(testing::ExpectNothingIsLeft(server_).launched, 1);
}

INSTANTIATE_TEST_SUITE_P(Steps, FailpointTest, ::testing::ValuesIn(server::kAllSteps), [](const auto& info) {
  std::ostringstream name;
  server::PrintTo(info.param, &name);
  return name.str();
});

}  // namespace
}  // namespace nsa::metadata
