// Which answers are held back, and that all of them leave.

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdlib>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/support/load.h"
#include "tests/support/rpc.h"
#include "tests/support/running_server.h"

namespace {

constexpr int kDescriptors = 1024;
bool IsCounted(int fd) { return fd >= 0 && fd < kDescriptors; }

// How often a connection was told to hold back what is written.
std::atomic<int> holds{0};
// The most writes that left together at the end of one.
std::atomic<int> most_together{0};
// By descriptor: the writes since then, or less than 0 where nothing is held.
std::atomic<int> writes_held[kDescriptors];

// What `name` would be without ours: libc's, or a sanitizer's.
template <typename Function>
Function Next(const char* name) {
  return reinterpret_cast<Function>(dlsym(RTLD_NEXT, name));
}

}  // namespace

// In place of libc's: gRPC and the server call them too. How many segments the answers leave in is no measure, since a
// busy kernel puts some together by itself.
extern "C" int setsockopt(int fd, int level, int name, const void* value, socklen_t size) noexcept {
  if (level == IPPROTO_TCP && name == TCP_CORK && IsCounted(fd)) {
    if (*static_cast<const int*>(value) != 0) {
      ++holds;
      writes_held[fd] = 0;
    } else {
      const int together = writes_held[fd].exchange(-1);
      for (int most = most_together; together > most && !most_together.compare_exchange_weak(most, together);) continue;
    }
  }
  static const auto next = Next<decltype(&setsockopt)>("setsockopt");
  return next(fd, level, name, value, size);
}
extern "C" ssize_t sendmsg(int fd, const msghdr* message, int flags) {
  if (IsCounted(fd) && writes_held[fd] >= 0) ++writes_held[fd];
  static const auto next = Next<decltype(&sendmsg)>("sendmsg");
  return next(fd, message, flags);
}

namespace nsa::metadata {
namespace {

using testing::RunningServer;

// The descriptors of the server's ends of its connections, which are in this process.
std::vector<int> Connections(const RunningServer& server) {
  const std::string target = server.target();
  const int port = std::atoi(target.substr(target.rfind(':') + 1).c_str());
  std::vector<int> found;
  for (int fd = 0; fd < kDescriptors; ++fd) {
    sockaddr_in own = {};
    sockaddr_in peer = {};
    socklen_t size = sizeof own;
    socklen_t peer_size = sizeof peer;
    if (getsockname(fd, reinterpret_cast<sockaddr*>(&own), &size) != 0 || own.sin_family != AF_INET) continue;
    if (getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &peer_size) != 0) continue;
    if (ntohs(own.sin_port) == port) found.push_back(fd);
  }
  return found;
}

// Whether soon no connection holds anything back.
bool NothingIsHeldSoon(const RunningServer& server) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  for (;;) {
    bool held = false;
    for (const int fd : Connections(server)) {
      int on = 0;
      socklen_t size = sizeof on;
      held |= getsockopt(fd, IPPROTO_TCP, TCP_CORK, &on, &size) == 0 && on != 0;
    }
    if (!held) return true;
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::yield();
  }
}

constexpr int kAnswers = 640;
// Writes that are answers, since a connection has not so much else to say at a time.
constexpr int kTogether = 4;

// The answers to many calls at a time on one connection, each of one sequence of so many tokens.
void CallUnaryOf(int32_t tokens, const RunningServer& server) {
  const testing::TestRequest request = {
      .spec = {.nsa_index_topk = 2048,
               .outputs = {kernels::Output::kSeqlensExpanded, kernels::Output::kNsaCacheSeqlens}},
      .extend_seq_lens = {tokens},
      .seq_lens = {tokens}};
  testing::Load load(server.Stub(), {request});
  load.Run(kAnswers, [](std::mt19937_64&) { return testing::Load::Treatment(); });
  EXPECT_EQ(load.codes[grpc::StatusCode::OK], kAnswers);
  EXPECT_EQ(load.wrong, 0);
}

void CallUnary(const RunningServer& server) { CallUnaryOf(3, server); }

// Answers of 32 KiB.
void CallLarge(const RunningServer& server) { CallUnaryOf(4'096, server); }

// The answers to items that are sent without waiting for them.
void CallStream(const RunningServer& server) {
  grpc::ClientContext context;
  const auto stub = server.Stub();
  const auto stream = stub->ExpandStream(&context);
  std::thread writer([&] {
    for (int i = 1; i <= kAnswers; ++i) {
      v1::ExpandStreamRequest item;
      *item.mutable_expand() = testing::SmallRequest();
      item.mutable_expand()->set_request_id(static_cast<uint64_t>(i));
      EXPECT_TRUE(stream->Write(item));
    }
    stream->WritesDone();
  });
  int answers = 0;
  for (v1::ExpandStreamResponse message; stream->Read(&message);) answers += message.has_expansion() ? 1 : 0;
  writer.join();
  EXPECT_EQ(answers, kAnswers);
  EXPECT_TRUE(stream->Finish().ok());
}

struct Case {
  const char* hold;
  void (*call)(const RunningServer& server);
  bool holds;
};

void PrintTo(const Case& c, std::ostream* out) {
  *out << "--hold_answers=" << c.hold
       << (c.call == CallStream  ? ", stream"
           : c.call == CallLarge ? ", large unary"
                                 : ", unary");
}

class HeldAnswersOverTheWireTest : public ::testing::TestWithParam<Case> {};

TEST_P(HeldAnswersOverTheWireTest, AreThoseOfTheCallsNamedAndAllLeave) {
  server::Options options = testing::LoopbackOptions();
  options.hold_answers = GetParam().hold;
  options.completion_queues = 1;
  const RunningServer server(options);
  // How many requests are there at once is the scheduler's to say: some are, in time.
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(30);
  for (std::atomic<int>& writes : writes_held) writes = -1;
  holds = 0;
  most_together = 0;
  do {
    GetParam().call(server);
    ASSERT_TRUE(NothingIsHeldSoon(server));
  } while (GetParam().holds && most_together < kTogether && std::chrono::steady_clock::now() < end);
  if (GetParam().holds) {
    EXPECT_GE(most_together, kTogether) << "of " << holds << " times that answers were held";
  } else {
    EXPECT_EQ(holds, 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Held, HeldAnswersOverTheWireTest,
                         ::testing::Values(Case{"all", CallUnary, true}, Case{"all", CallStream, true},
                                           Case{"all", CallLarge, false}, Case{"streams", CallUnary, false},
                                           Case{"streams", CallStream, true}, Case{"none", CallUnary, false},
                                           Case{"none", CallStream, false}));

}  // namespace
}  // namespace nsa::metadata
