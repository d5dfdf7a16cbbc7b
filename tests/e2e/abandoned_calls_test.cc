// Many calls whose callers give up, or whose deadlines are short. NSA_METADATA_ABANDONED_CALLS says how many of each
// (10,000).

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <set>
#include <vector>

#include "grpcpp/completion_queue.h"
#include "tests/support/books.h"
#include "tests/support/faulty_backend.h"
#include "tests/support/rpc.h"
#include "tests/support/running_server.h"

namespace nsa::metadata {
namespace {

using std::chrono::microseconds;
using std::chrono::steady_clock;
using testing::Arrays;
using testing::Books;
using testing::RunningServer;
using testing::TestRequest;

constexpr size_t kInFlight = 64;
constexpr size_t kKinds = 256;

int64_t Calls() {
  const char* calls = std::getenv("NSA_METADATA_ABANDONED_CALLS");
  return calls == nullptr ? 10'000 : std::atoll(calls);
}

// What is asked, and the right answer.
struct Kind {
  v1::ExpandRequest request;
  Arrays answer;
};

std::vector<Kind> MakeKinds() {
  std::mt19937_64 random(7);
  std::vector<Kind> kinds;
  for (size_t i = 0; i < kKinds; ++i) {
    TestRequest request = testing::RandomRequest(random, 60);
    request.spec.outputs.Add(kernels::Output::kSeqlensExpanded);  // none would mean the default ones
    kinds.push_back({testing::ToProto(request), testing::ReferenceArrays(request)});
  }
  return kinds;
}

// Keeps so many calls in flight, and compares every reply that comes.
class Load {
 public:
  // What is done to a call before and after it is started.
  struct Treatment {
    std::chrono::nanoseconds deadline = std::chrono::seconds(60);
    bool cancel = false;
  };

  explicit Load(RunningServer& server) : stub_(server.Stub()) {
    // The connection is there before the first deadline counts.
    grpc::ClientContext context;
    v1::GetServerInfoResponse info;
    EXPECT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
  }

  void Run(int64_t calls, const std::function<Treatment(std::mt19937_64&)>& draw) {
    std::mt19937_64 random(11);
    int64_t started = 0;
    size_t in_flight = 0;
    while (started < calls || in_flight > 0) {
      while (started < calls && in_flight < kInFlight) {
        Start(kinds_[static_cast<size_t>(started++) % kKinds], draw(random));
        ++in_flight;
      }
      void* tag = nullptr;
      bool ok = false;
      ASSERT_TRUE(queue_.Next(&tag, &ok));
      End(static_cast<Call*>(tag));
      --in_flight;
      // Whoever is to be cancelled is so in the midst of the others' ends.
      if (!to_cancel_.empty() && random() % 2 == 0) {
        (*to_cancel_.begin())->context.TryCancel();
        to_cancel_.erase(to_cancel_.begin());
      }
      if (in_flight == to_cancel_.size()) CancelAll();
    }
  }

  std::array<int64_t, 17> codes{};
  std::vector<double> late_us;  // the end of a call that its deadline ended, after it

 private:
  struct Call {
    const Kind* kind;
    grpc::ClientContext context;
    steady_clock::time_point deadline;
    v1::ExpandResponse response;
    grpc::Status status;
    std::unique_ptr<grpc::ClientAsyncResponseReader<v1::ExpandResponse>> reader;
  };

  void Start(const Kind& kind, const Treatment& treatment) {
    auto* call = new Call{.kind = &kind, .context = {}, .deadline = {}, .response = {}, .status = {}, .reader = {}};
    const auto deadline = std::chrono::duration_cast<microseconds>(treatment.deadline);
    call->deadline = steady_clock::now() + deadline;
    call->context.set_deadline(std::chrono::system_clock::now() + deadline);
    call->reader = stub_->AsyncExpand(&call->context, kind.request, &queue_);
    call->reader->Finish(&call->response, &call->status, call);
    if (treatment.cancel) to_cancel_.insert(call);
  }

  void End(Call* call) {
    to_cancel_.erase(call);
    ++codes.at(call->status.error_code());
    if (call->status.ok()) {
      EXPECT_EQ(testing::ToArrays(call->response), call->kind->answer);
    } else if (call->status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
      late_us.push_back(std::chrono::duration<double, std::micro>(steady_clock::now() - call->deadline).count());
    }
    delete call;
  }

  void CancelAll() {
    for (Call* call : to_cancel_) call->context.TryCancel();
    to_cancel_.clear();
  }

  const std::vector<Kind> kinds_ = MakeKinds();
  const std::unique_ptr<v1::MetadataService::Stub> stub_;
  grpc::CompletionQueue queue_;
  std::set<Call*> to_cancel_;
};

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
  Load load(server);
  load.Run(Calls(),
           [](std::mt19937_64& random) { return Load::Treatment{.deadline = microseconds(random() % 5'000)}; });
  const Books books = testing::ExpectNothingIsLeft(server);
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
  Load load(server);
  load.Run(Calls(), [](std::mt19937_64& random) { return Load::Treatment{.cancel = random() % 2 == 0}; });
  const Books books = testing::ExpectNothingIsLeft(server);
  using Code = grpc::StatusCode;
  EXPECT_EQ(load.codes[Code::OK] + load.codes[Code::CANCELLED], Calls());
  EXPECT_GT(load.codes[Code::CANCELLED], 0);
  EXPECT_GE(books.admitted, load.codes[Code::OK]);
  Report("half of them cancelled", load, books);
}

}  // namespace
}  // namespace nsa::metadata
