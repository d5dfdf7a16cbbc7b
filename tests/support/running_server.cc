#include "tests/support/running_server.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdlib>
#include <utility>

#include "client/prepare_grpc.h"
#include "grpcpp/completion_queue.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"

namespace nsa::metadata::testing {

server::Options LoopbackOptions() {
  server::Options options;
  options.listen = {"127.0.0.1:0"};
  options.health_listen = "127.0.0.1:0";
  options.metrics_listen = "127.0.0.1:0";
  // A test that holds a lane may hold the thread of a queue.
  options.completion_queues = 2;
  return options;
}

RunningServer::RunningServer(const server::Options& options, std::unique_ptr<kernels::Backend> backend,
                             server::Failpoints* failpoints) {
  // Keeps gRPC's library up between servers: its end may wait ten seconds for a poll of its own.
  // Volatile, or the pointer is optimised away and LeakSanitizer finds what it pointed to.
  [[maybe_unused]] static grpc::CompletionQueue* const volatile keep = new grpc::CompletionQueue;
  auto started =
      server::Server::Start(options, {.backend = std::move(backend), .failpoints = failpoints, .end = nullptr});
  if (!started.ok()) {
    ADD_FAILURE() << "the server did not start: " << started.status();
    std::abort();
  }
  server_ = *std::move(started);
}

std::shared_ptr<grpc::Channel> RunningServer::Connect() const {
  client::PrepareGrpc();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel(target(), grpc::InsecureChannelCredentials(), arguments);
}

std::string HttpGet(const std::string& address, const std::string& path) {
  sockaddr_in where = {};
  where.sin_family = AF_INET;
  where.sin_port = htons(static_cast<uint16_t>(std::atoi(address.substr(address.rfind(':') + 1).c_str())));
  where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  std::string reply;
  if (connect(fd, reinterpret_cast<sockaddr*>(&where), sizeof where) == 0) {
    const std::string request = "GET " + path + " HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n";
    EXPECT_EQ(send(fd, request.data(), request.size(), MSG_NOSIGNAL), static_cast<ssize_t>(request.size()));
    char bytes[4096];
    for (ssize_t got; (got = recv(fd, bytes, sizeof bytes, 0)) > 0;) reply.append(bytes, got);
  }
  close(fd);
  return reply;
}

double MetricValue(const std::string& text, const std::string& series) {
  const size_t at = text.find("\n" + series + " ");
  return at == std::string::npos ? -1 : std::atof(text.c_str() + at + series.size() + 2);
}

}  // namespace nsa::metadata::testing
