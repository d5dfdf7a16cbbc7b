#include "client/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <limits>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/synchronization/blocking_counter.h"
#include "absl/synchronization/notification.h"
#include "client/reference.h"
#include "client/status.h"
#include "tests/client/fake_server.h"

namespace nsa::metadata::client {
namespace {

const std::vector<int32_t> kExtendSeqLens = {3, 2};
const std::vector<int32_t> kSeqLens = {10, 4};

Request TestRequest() {
  Request request(v1::SEQUENCE_MODE_CAUSAL);
  request.extend_seq_lens = kExtendSeqLens;
  request.seq_lens = kSeqLens;
  request.nsa_index_topk = 2048;
  request.request_id = 9;
  return request;
}

// Retries soon, so that tests end soon.
ClientOptions TestOptions() {
  ClientOptions options;
  options.retry.initial_backoff = absl::Milliseconds(1);
  options.retry.max_backoff = absl::Milliseconds(2);
  return options;
}

std::unique_ptr<Client> ConnectTo(const FakeServer& server, const ClientOptions& options = TestOptions()) {
  absl::StatusOr<std::unique_ptr<Client>> client = Client::Connect(server.target(), options);
  EXPECT_TRUE(client.ok()) << client.status();
  return *std::move(client);
}

// Fails the first `failures` calls with `code`, then answers.
FakeServer::ExpandFunction FailFirst(int failures, grpc::StatusCode code) {
  const auto left = std::make_shared<std::atomic<int>>(failures);
  return [left, code](const v1::ExpandRequest& request, v1::ExpandResponse& response) {
    if (left->fetch_sub(1) > 0) return grpc::Status(code, "not now");
    response.set_request_id(request.request_id());
    return grpc::Status::OK;
  };
}

TEST(ClientTest, AnswersWhatTheServerSends) {
  FakeServer server;
  const auto reply = ConnectTo(server)->Expand(TestRequest());
  ASSERT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(FirstDifference(*reply, Reference(TestRequest())), "");
}

TEST(ClientTest, AnswersAsynchronousCallsOnceEach) {
  constexpr int kCalls = 100;
  FakeServer server;
  const std::unique_ptr<Client> client = ConnectTo(server);
  std::atomic<int> right = 0;
  absl::BlockingCounter calls(kCalls);
  for (int i = 0; i < kCalls; ++i) {
    client->ExpandAsync(TestRequest(), [&](const absl::StatusOr<v1::ExpandResponse>& reply) {
      if (reply.ok() && FirstDifference(*reply, Reference(TestRequest())).empty()) ++right;
      calls.DecrementCount();
    });
  }
  calls.Wait();
  EXPECT_EQ(right, kCalls);
}

TEST(ClientTest, ItsDestructorWaitsForCallbacks) {
  absl::Notification release;
  FakeServer server([&](const v1::ExpandRequest&, v1::ExpandResponse&) {
    release.WaitForNotification();
    return grpc::Status::OK;
  });
  std::unique_ptr<Client> client = ConnectTo(server);
  std::atomic<bool> called = false;
  client->ExpandAsync(TestRequest(), [&](const absl::StatusOr<v1::ExpandResponse>&) { called = true; });
  release.Notify();
  client.reset();
  EXPECT_TRUE(called);
}

TEST(ClientTest, SaysWhatTheServerIs) {
  FakeServer server;
  const auto info = ConnectTo(server)->ServerInfo();
  ASSERT_TRUE(info.ok()) << info.status();
  EXPECT_EQ(info->version(), "fake");
}

TEST(ClientTest, TriesAgainWhenUnavailable) {
  FakeServer server(FailFirst(3, grpc::StatusCode::UNAVAILABLE));
  const auto reply = ConnectTo(server)->Expand(TestRequest());
  EXPECT_TRUE(reply.ok()) << reply.status();
  EXPECT_EQ(server.calls(), 4);
}

TEST(ClientTest, GivesUpAfterTheAttemptsAllowed) {
  FakeServer server(FailFirst(std::numeric_limits<int>::max(), grpc::StatusCode::UNAVAILABLE));
  EXPECT_EQ(ConnectTo(server)->Expand(TestRequest()).status(), absl::UnavailableError("not now"));
  EXPECT_EQ(server.calls(), 4);

  ClientOptions options = TestOptions();
  options.retry.max_attempts = 1;
  EXPECT_EQ(ConnectTo(server, options)->Expand(TestRequest()).status(), absl::UnavailableError("not now"));
  EXPECT_EQ(server.calls(), 5);
}

TEST(ClientTest, RetriesAreNotThrottledByManyFailures) {
  FakeServer server(FailFirst(std::numeric_limits<int>::max(), grpc::StatusCode::UNAVAILABLE));
  const std::unique_ptr<Client> client = ConnectTo(server);
  for (int i = 0; i < 50; ++i) EXPECT_FALSE(client->Expand(TestRequest()).ok());
  EXPECT_EQ(server.calls(), 200);
}

TEST(ClientTest, ARequestLargerThanGrpcsUsualRetryBufferIsTriedAgain) {
  FakeServer server(FailFirst(1, grpc::StatusCode::UNAVAILABLE));
  const std::vector<int32_t> lengths(65'536, 1);
  Request request = TestRequest();
  request.extend_seq_lens = lengths;
  request.seq_lens = lengths;
  const auto reply = ConnectTo(server)->Expand(request);
  EXPECT_TRUE(reply.ok()) << reply.status();
}

TEST(ClientTest, OtherFailuresAreNotTriedAgain) {
  for (const grpc::StatusCode code :
       {grpc::StatusCode::INVALID_ARGUMENT, grpc::StatusCode::RESOURCE_EXHAUSTED, grpc::StatusCode::INTERNAL,
        grpc::StatusCode::DEADLINE_EXCEEDED, grpc::StatusCode::UNKNOWN, grpc::StatusCode::ABORTED}) {
    FakeServer server(FailFirst(1, code));
    const auto reply = ConnectTo(server)->Expand(TestRequest());
    EXPECT_EQ(static_cast<int>(reply.status().code()), static_cast<int>(code)) << reply.status();
    EXPECT_EQ(server.calls(), 1) << "calls of code " << code;
  }
}

TEST(ClientTest, EndsACallAtItsDeadline) {
  absl::Notification release;
  FakeServer server([&](const v1::ExpandRequest&, v1::ExpandResponse&) {
    release.WaitForNotification();
    return grpc::Status::OK;
  });
  ClientOptions options = TestOptions();
  options.timeout = absl::Milliseconds(50);
  const auto reply = ConnectTo(server, options)->Expand(TestRequest());
  release.Notify();
  EXPECT_EQ(reply.status().code(), absl::StatusCode::kDeadlineExceeded) << reply.status();
}

// Takes connections, lets them send all they like, and reads nothing but what the kernel takes.
class DeafPeer {
 public:
  DeafPeer() {
    const int little = 4096;
    setsockopt(listener_, SOL_SOCKET, SO_RCVBUF, &little, sizeof little);
    sockaddr_in where = {};
    where.sin_family = AF_INET;
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof where;
    EXPECT_EQ(bind(listener_, reinterpret_cast<sockaddr*>(&where), size), 0);
    EXPECT_EQ(listen(listener_, 1), 0);
    getsockname(listener_, reinterpret_cast<sockaddr*>(&where), &size);
    target_ = absl::StrCat("127.0.0.1:", ntohs(where.sin_port));
    thread_ = std::thread([this] {
      peer_ = accept(listener_, nullptr, nullptr);
      // SETTINGS with INITIAL_WINDOW_SIZE, then WINDOW_UPDATE, each of 1 GiB.
      const char opened[] =
          "\0\0\6\4\0\0\0\0\0"
          "\0\4\x40\0\0\0"
          "\0\0\4\10\0\0\0\0\0"
          "\x40\0\0\0";
      EXPECT_EQ(write(peer_, opened, sizeof opened - 1), static_cast<ssize_t>(sizeof opened - 1));
    });
  }
  ~DeafPeer() {
    shutdown(listener_, SHUT_RDWR);
    thread_.join();
    close(peer_);
    close(listener_);
  }
  const std::string& target() const { return target_; }

 private:
  const int listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int peer_ = -1;
  std::string target_;
  std::thread thread_;
};

TEST(ClientTest, ACallToAPeerThatTakesNothingEndsAtItsDeadline) {
  DeafPeer peer;
  ClientOptions options = TestOptions();
  options.timeout = absl::Milliseconds(300);
  const auto client = Client::Connect(peer.target(), options);
  ASSERT_TRUE(client.ok()) << client.status();
  // More than the kernels hold of it between them.
  const std::vector<int32_t> lengths(1 << 20, 1);
  Request request = TestRequest();
  request.extend_seq_lens = lengths;
  request.seq_lens = lengths;
  const absl::Time begin = absl::Now();
  for (int i = 0; i < 3; ++i) {
    const auto reply = (*client)->Expand(request);
    EXPECT_EQ(reply.status().code(), absl::StatusCode::kDeadlineExceeded) << reply.status();
  }
  // gRPC itself ends the first when the connection is given up.
  EXPECT_LT(absl::Now() - begin, options.keepalive_timeout);
}

TEST(ClientTest, SendsNothingWhenItsDeadlineHasPassed) {
  FakeServer server;
  const std::unique_ptr<Client> client = ConnectTo(server);
  for (const absl::Time deadline : {absl::Now() - absl::Seconds(1), absl::InfinitePast()}) {
    const auto reply = client->Expand(TestRequest(), deadline);
    EXPECT_EQ(reply.status().code(), absl::StatusCode::kDeadlineExceeded) << reply.status();
  }
  EXPECT_EQ(server.calls(), 0);
}

TEST(ClientTest, TellsWhyARequestWasRefused) {
  FakeServer server([](const v1::ExpandRequest&, v1::ExpandResponse&) {
    return Refusal(grpc::StatusCode::INVALID_ARGUMENT, "TOP_K_TOO_SMALL", "nsa_index_topk", 0, 1);
  });
  const auto violation = ViolationOf(ConnectTo(server)->Expand(TestRequest()).status());
  ASSERT_TRUE(violation.has_value());
  EXPECT_EQ(violation->reason, v1::REFUSAL_REASON_TOP_K_TOO_SMALL);
  EXPECT_EQ(violation->field, "nsa_index_topk");
  EXPECT_EQ(violation->limit, 1);
}

TEST(ClientTest, ChannelsAreDistinctConnections) {
  FakeServer server;
  ClientOptions options = TestOptions();
  options.channels = 3;
  const std::unique_ptr<Client> client = ConnectTo(server, options);
  for (int i = 0; i < 9; ++i) EXPECT_TRUE(client->Expand(TestRequest()).ok());
  EXPECT_EQ(server.connections(), 3u);
}

TEST(ClientTest, AReplyOverTheReceiveLimitIsRefused) {
  FakeServer server;
  ClientOptions options = TestOptions();
  options.max_receive_message_bytes = 10;
  EXPECT_EQ(ConnectTo(server, options)->Expand(TestRequest()).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(ClientTest, AServerThatIsNotThereIsUnavailableWithoutAViolation) {
  std::string target;
  {
    const FakeServer gone;
    target = gone.target();
  }
  const auto client = Client::Connect(target, TestOptions());
  ASSERT_TRUE(client.ok()) << client.status();
  const absl::Status status = (*client)->Expand(TestRequest()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_FALSE(ViolationOf(status).has_value());
}

TEST(ClientTest, RefusesOptionsThatAreOutOfRange) {
  const auto error_of = [](const std::string& target, const ClientOptions& options) {
    return std::string(Client::Connect(target, options).status().message());
  };
  EXPECT_EQ(error_of("", {}), "the target is empty, want a name as \"host:port\"");
  EXPECT_EQ(error_of("a:1", {.timeout = absl::Seconds(-1)}), "ClientOptions.timeout is -1s, want 0 or more");
  EXPECT_EQ(error_of("a:1", {.retry = {.max_attempts = 6}}), "ClientOptions.retry.max_attempts is 6, want 1 to 5");
  EXPECT_EQ(error_of("a:1", {.channels = 0}), "ClientOptions.channels is 0, want 1 to 1024");
  EXPECT_EQ(error_of("a:1", {.max_receive_message_bytes = 0}),
            "ClientOptions.max_receive_message_bytes is 0, want 1 or more");
  EXPECT_EQ(error_of("a:1", {.keepalive_time = absl::Seconds(9)}),
            "ClientOptions.keepalive_time is 9s, want 10s to 24h");
  EXPECT_EQ(error_of("a:1", {.keepalive_timeout = absl::ZeroDuration()}),
            "ClientOptions.keepalive_timeout is 0, want 1ms to 24h");
}

}  // namespace
}  // namespace nsa::metadata::client
