// Start, drain, connections.

#include <gtest/gtest.h>
#include <unistd.h>

#include <thread>

#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "tests/support/gated_backend.h"
#include "tests/support/rpc.h"
#include "tests/support/running_server.h"

namespace nsa::metadata {
namespace {

using testing::Call;
using testing::HttpGet;
using testing::Reply;
using testing::RunningServer;

TEST(LifecycleTest, DrainAnswersWhatIsInFlight) {
  testing::Gate gate;
  RunningServer server(testing::LoopbackOptions(), testing::MakeGatedBackend(gate));
  const std::string metrics = server.server().metrics_address();
  EXPECT_NE(HttpGet(metrics, "/readyz").find("200 OK"), std::string::npos);
  grpc::Status status(grpc::StatusCode::UNKNOWN, "never answered");
  std::thread caller([&] { status = Call(*server.Stub(), testing::SmallRequest()).status; });
  gate.AwaitStarted(1);
  std::thread drain([&] { server.server().Drain(); });
  // The drain waits for the call, and says that the server is not ready.
  while (HttpGet(metrics, "/readyz").find("503") == std::string::npos) std::this_thread::yield();
  EXPECT_EQ(server.server().live_calls(), 1);
  gate.Open();
  caller.join();
  drain.join();
  EXPECT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(server.server().live_calls(), 0);
  EXPECT_EQ(server.server().output_blocks_in_use(), 0u);
}

TEST(LifecycleTest, DrainCutsWhatTakesLongerThanItsTimeout) {
  testing::Gate gate;
  server::Options options = testing::LoopbackOptions();
  options.drain_timeout = absl::Milliseconds(20);
  RunningServer server(options, testing::MakeGatedBackend(gate));
  grpc::Status status;
  std::thread caller([&] { status = Call(*server.Stub(), testing::SmallRequest()).status; });
  gate.AwaitStarted(1);
  std::thread drain([&] { server.server().Drain(); });
  caller.join();  // the caller is let go though its batch still runs
  EXPECT_FALSE(status.ok());
  gate.Open();
  drain.join();
  EXPECT_EQ(server.server().live_calls(), 0);
}

TEST(LifecycleTest, ALameDuckServesOnWithReadinessOff) {
  server::Options options = testing::LoopbackOptions();
  options.lame_duck = absl::Seconds(3);
  RunningServer server(options);
  const std::string metrics = server.server().metrics_address();
  std::thread drain([&] { server.server().Drain(); });
  while (HttpGet(metrics, "/readyz").find("503") == std::string::npos) std::this_thread::yield();
  const grpc::Status on_a_new_connection = Call(*server.Stub(), testing::SmallRequest()).status;
  EXPECT_TRUE(on_a_new_connection.ok()) << on_a_new_connection.error_message();
  drain.join();
  EXPECT_EQ(Call(*server.Stub(), testing::SmallRequest()).status.error_code(), grpc::StatusCode::UNAVAILABLE)
      << "it has drained";
}

TEST(LifecycleTest, DrainWithIdleConnectionsDoesNotWaitForThem) {
  server::Options options = testing::LoopbackOptions();
  options.drain_timeout = absl::Hours(1);  // a drain that waited would never end
  RunningServer server(options);
  const auto stub = server.Stub();
  EXPECT_TRUE(Call(*stub, testing::SmallRequest()).status.ok());
  server.server().Drain();
  EXPECT_EQ(Call(*stub, testing::SmallRequest(), std::chrono::milliseconds(200)).status.ok(), false);
}

TEST(LifecycleTest, ServesSeveralAddressesAndAUnixSocket) {
  const std::string path = ::testing::TempDir() + "lifecycle_test.sock";
  server::Options options = testing::LoopbackOptions();
  options.listen = {"127.0.0.1:0", "[::1]:0", "unix:" + path};
  RunningServer server(options);
  for (const std::string& address : server.server().listen_addresses()) {
    const auto stub = v1::MetadataService::NewStub(grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
    const Reply reply = Call(*stub, testing::SmallRequest());
    EXPECT_TRUE(reply.status.ok()) << address << ": " << reply.status.error_message();
  }
  server.server().Drain();
  EXPECT_NE(access(path.c_str(), F_OK), 0) << "the socket file is still there";
}

TEST(LifecycleTest, ConnectionsOverTheLimitAreRefusedAndComeInAgainLater) {
  server::Options options = testing::LoopbackOptions();
  options.connection.max_connections = 2;
  RunningServer server(options);
  auto first = server.Stub();
  const auto second = server.Stub();
  EXPECT_TRUE(Call(*first, testing::SmallRequest()).status.ok());
  EXPECT_TRUE(Call(*second, testing::SmallRequest()).status.ok());
  EXPECT_EQ(Call(*server.Stub(), testing::SmallRequest()).status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(Call(*second, testing::SmallRequest()).status.ok()) << "a connection that is in must not suffer";
  const std::string metrics = HttpGet(server.server().metrics_address(), "/metrics");
  EXPECT_EQ(testing::MetricValue(metrics, "nsa_metadata_connections"), 2);
  EXPECT_GE(testing::MetricValue(metrics, "nsa_metadata_connections_refused_total"), 1);
  first.reset();
  // The server learns of the end a little later than the client.
  grpc::Status status;
  do status = Call(*server.Stub(), testing::SmallRequest()).status;
  while (status.error_code() == grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(status.ok()) << status.error_message();
}

TEST(LifecycleTest, APortThatIsTakenIsNamed) {
  RunningServer first;
  for (const auto& change :
       {+[](server::Options&o, const server::Server&s) { o.listen = s.listen_addresses(); },
        +[](server::Options&o, const server::Server&s) { o.health_listen = s.health_address(); },
        +[](server::Options&o, const server::Server&s) { o.metrics_listen = s.metrics_address(); }}) {
    server::Options options = testing::LoopbackOptions();
    change(options, first.server());
    const auto second = server::Server::Start(options);
    ASSERT_FALSE(second.ok());
    const std::string message(second.status().message());
    EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable) << message;
    EXPECT_NE(message.find("127.0.0.1:"), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace nsa::metadata
