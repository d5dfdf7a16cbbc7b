// Many calls whose callers give up, or whose deadlines are short. NSA_METADATA_ABANDONED_CALLS says how many of each
// (10,000).

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <utility>
#include <vector>

#include "tests/support/books.h"
#include "tests/support/faulty_backend.h"
#include "tests/support/load.h"
#include "tests/support/running_server.h"

namespace nsa::metadata {
namespace {

using std::chrono::microseconds;
using testing::Books;
using testing::Load;
using testing::RunningServer;
using testing::TestRequest;

constexpr size_t kKinds = 256;

int64_t Calls() {
  const char* calls = std::getenv("NSA_METADATA_ABANDONED_CALLS");
  return calls == nullptr ? 10'000 : std::atoll(calls);
}

std::vector<TestRequest> Requests() {
  std::mt19937_64 random(7);
  std::vector<TestRequest> requests;
  for (size_t i = 0; i < kKinds; ++i) {
    TestRequest request = testing::RandomRequest(random, 60);
    request.spec.outputs.Add(kernels::Output::kSeqlensExpanded);  // none would mean the default ones
    requests.push_back(std::move(request));
  }
  return requests;
}

// One lane, so that requests wait, meet in batches, and expire or are cancelled there.
server::Options OneLane() {
  server::Options options = testing::LoopbackOptions();
  options.lanes = 1;
  return options;
}

void Report(const char* what, const Load& load, const Books& books) {
  std::printf(
      "%s: %lld OK, %lld DEADLINE_EXCEEDED, %lld CANCELLED at the caller; in the server %.0f admitted = %.0f launched"
      " + %.0f expired + %.0f cancelled\n",
      what, static_cast<long long>(load.codes[grpc::StatusCode::OK]),
      static_cast<long long>(load.codes[grpc::StatusCode::DEADLINE_EXCEEDED]),
      static_cast<long long>(load.codes[grpc::StatusCode::CANCELLED]), books.admitted, books.launched, books.expired,
      books.cancelled);
}

TEST(AbandonedCallsTest, ShortDeadlinesLoseNoRequestAndLeaveNothing) {
  testing::Faults slow;  // without a fault, but slow enough for deadlines to pass in the queue
  slow.batch_time = std::chrono::milliseconds(1);
  RunningServer server(OneLane(), testing::MakeFaultyBackend(slow));
  Load load(server.Stub(), Requests());
  load.Run(Calls(),
           [](std::mt19937_64& random) { return Load::Treatment{.deadline = microseconds(random() % 5'000)}; });
  const Books books = testing::ExpectNothingIsLeft(server);
  EXPECT_EQ(load.wrong, 0);
  using Code = grpc::StatusCode;
  EXPECT_EQ(load.codes[Code::OK] + load.codes[Code::DEADLINE_EXCEEDED], Calls());
  EXPECT_GE(books.admitted, load.codes[Code::OK]);
  Report("deadlines of 0 to 5 ms", load, books);
  std::sort(load.late_us.begin(), load.late_us.end());
  ASSERT_FALSE(load.late_us.empty());
  const double p99_9_ms = load.late_us[load.late_us.size() * 999 / 1000] / 1e3;
  std::printf("ended after its deadline: p50 %.1f ms, p99.9 %.1f ms\n", load.late_us[load.late_us.size() / 2] / 1e3,
              p99_9_ms);
  if (Calls() >= 1'000'000) {
    EXPECT_LE(p99_9_ms, 20);
    EXPECT_GT(books.expired, 0);
  }
}

TEST(AbandonedCallsTest, CancelledCallsLoseNoRequestAndLeaveNothing) {
  RunningServer server(OneLane());
  Load load(server.Stub(), Requests());
  load.Run(Calls(), [](std::mt19937_64& random) { return Load::Treatment{.cancel = random() % 2 == 0}; });
  const Books books = testing::ExpectNothingIsLeft(server);
  EXPECT_EQ(load.wrong, 0);
  using Code = grpc::StatusCode;
  EXPECT_EQ(load.codes[Code::OK] + load.codes[Code::CANCELLED], Calls());
  EXPECT_GT(load.codes[Code::CANCELLED], 0);
  EXPECT_GE(books.admitted, load.codes[Code::OK]);
  Report("half of them cancelled", load, books);
}

}  // namespace
}  // namespace nsa::metadata
