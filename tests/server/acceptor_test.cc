#include "server/acceptor.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <string>
#include <vector>

#include "server/grpc_connections.h"
#include "server/mutex.h"

namespace nsa::metadata::server {
namespace {

using ::testing::HasSubstr;

// A client's end of a connection, whatever became of it.
Descriptor Connect(const Address& address) {
  Descriptor fd(socket(address.is_unix ? AF_UNIX : AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (address.is_unix) {
    sockaddr_un where = {};
    where.sun_family = AF_UNIX;
    address.host.copy(where.sun_path, sizeof where.sun_path - 1);
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&where), sizeof where), 0) << strerror(errno);
  } else {
    sockaddr_in where = {};
    where.sin_family = AF_INET;
    where.sin_port = htons(address.port);
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(fd.get(), reinterpret_cast<sockaddr*>(&where), sizeof where), 0) << strerror(errno);
  }
  return fd;
}

bool ClosedByPeer(const Descriptor& fd) {
  char byte;
  return recv(fd.get(), &byte, 1, 0) <= 0;
}

// Takes what an acceptor accepts.
class AcceptorTest : public ::testing::Test {
 protected:
  void Start(const std::string& text, size_t max_connections) {
    absl::StatusOr<Listener> listener = Listener::Open(*ParseAddress(text));
    ASSERT_TRUE(listener.ok()) << listener.status();
    std::vector<Listener> listeners;
    listeners.push_back(*std::move(listener));
    acceptor_ = std::make_unique<Acceptor>(Acceptor::Options{.max_connections = max_connections,
                                                             .accepted =
                                                                 [this](int fd, int) {
                                                                   MutexLock lock(&mutex_);
                                                                   accepted_.emplace_back(fd);
                                                                   changed_.SignalAll();
                                                                 },
                                                             .refused =
                                                                 [this] {
                                                                   MutexLock lock(&mutex_);
                                                                   ++refused_;
                                                                 },
                                                             .delivered = delivered_},
                                           std::move(listeners));
    acceptor_->Start();
  }
  void AwaitAccepted(size_t count) {
    MutexLock lock(&mutex_);
    while (accepted_.size() < count) changed_.Wait(mutex_);
  }
  const Address& address() const { return acceptor_->listeners().front().address(); }

  Mutex mutex_;
  CondVar changed_;
  // By value once it is of interest: the acceptor's thread adds to it.
  std::deque<Descriptor> accepted_;
  int refused_ = 0;
  Delivered delivered_;
  std::unique_ptr<Acceptor> acceptor_;
};

TEST_F(AcceptorTest, SetsTheOptionsThatEndAStuckConnection) {
  Start("127.0.0.1:0", 10);
  const Descriptor client = Connect(address());
  AwaitAccepted(1);
  int value = 0;
  socklen_t size = sizeof value;
  getsockopt(accepted_[0].get(), IPPROTO_TCP, TCP_NODELAY, &value, &size);
  EXPECT_NE(value, 0);
  getsockopt(accepted_[0].get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &value, &size);
  EXPECT_EQ(value, 20'000);
  getsockopt(accepted_[0].get(), SOL_SOCKET, SO_SNDBUF, &value, &size);
  EXPECT_EQ(value, 2 * 256 * 1024) << "the kernel doubles what it is told";
}

TEST_F(AcceptorTest, ClosesWhatIsOverTheLimitAndTakesOthersOnceThereIsRoom) {
  Start("127.0.0.1:0", 2);
  const Descriptor first = Connect(address());
  const Descriptor second = Connect(address());
  AwaitAccepted(2);
  const Descriptor third = Connect(address());
  EXPECT_TRUE(ClosedByPeer(third));
  {
    MutexLock lock(&mutex_);
    EXPECT_EQ(refused_, 1);
  }
  {
    MutexLock lock(&mutex_);
    accepted_.front().Close();  // as gRPC does, without telling
  }
  const Descriptor fourth = Connect(address());
  AwaitAccepted(3);
  EXPECT_EQ(acceptor_->connections().Sweep(), 2u);
}

TEST_F(AcceptorTest, KnowsAConnectionFromAnotherOnTheSameDescriptor) {
  Start("127.0.0.1:0", 10);
  const Descriptor client = Connect(address());
  AwaitAccepted(1);
  const int number = accepted_[0].get();
  EXPECT_EQ(acceptor_->connections().Sweep(), 1u);
  accepted_[0].Close();
  const Descriptor other(socket(AF_INET, SOCK_STREAM, 0));
  const Descriptor same(dup2(other.get(), number));
  EXPECT_EQ(acceptor_->connections().Sweep(), 0u) << "another socket now has descriptor " << number;
}

// Connections with what came on them, and what of that were requests.
class UndeliveredTest : public AcceptorTest {
 protected:
  void SetUp() override { Start("127.0.0.1:0", 100); }

  struct Ends {
    Descriptor client;
    int server;
    DeliverySlot slot;
  };
  Ends Open() {
    Ends ends = {.client = Connect(address()), .server = -1, .slot = kNoSlot};
    AwaitAccepted(++opened_);
    MutexLock lock(&mutex_);
    ends.server = accepted_.back().get();
    ends.slot = SlotOf(PeerOf(ends.server));
    return ends;
  }
  // Sends, and takes it at the other end as gRPC would.
  void Send(const Ends& ends, size_t bytes) {
    std::string data(64 << 10, 'x');
    while (bytes > 0) {
      data.resize(std::min(bytes, data.size()));
      ASSERT_EQ(send(ends.client.get(), data.data(), data.size(), 0), static_cast<ssize_t>(data.size()));
      for (size_t taken = 0; taken < data.size();) {  // it does not block, and may come in parts
        const ssize_t some = recv(ends.server, data.data(), data.size() - taken, 0);
        ASSERT_TRUE(some > 0 || errno == EAGAIN) << strerror(errno);
        taken += static_cast<size_t>(std::max<ssize_t>(some, 0));
      }
      bytes -= data.size();
    }
  }
  size_t Look(std::chrono::milliseconds after) {
    return acceptor_->connections().ShutDownUndelivered(Clock::now() + after, kMiB);
  }
  uint64_t undelivered() const { return acceptor_->connections().undelivered_bytes(); }
  static bool IsReset(const Ends& ends) {
    char byte;
    return recv(ends.client.get(), &byte, 1, MSG_DONTWAIT) == 0 || errno == ECONNRESET;
  }

  static constexpr uint64_t kMiB = 1 << 20;
  static constexpr uint64_t kAllowance = 16 << 10;

 private:
  size_t opened_ = 0;
};

TEST_F(UndeliveredTest, EndsWhatSentTheMostWithoutARequestOnceAllHaveSentTooMuch) {
  const Ends harmless = Open();
  const Ends attacker = Open();
  Send(harmless, 100'000);
  Send(attacker, 500'000);
  EXPECT_EQ(Look(std::chrono::milliseconds(100)), 0u);
  EXPECT_NEAR(static_cast<double>(undelivered()), 600'000 - 2 * kAllowance, 1'000);
  Send(attacker, 600'000);
  EXPECT_EQ(Look(std::chrono::milliseconds(200)), 1u);
  EXPECT_TRUE(IsReset(attacker));
  EXPECT_FALSE(IsReset(harmless));
  EXPECT_NEAR(static_cast<double>(undelivered()), 100'000 - kAllowance, 1'000);
}

TEST_F(UndeliveredTest, CountsNothingThatRequestsAccountFor) {
  const Ends ends = Open();
  for (int i = 1; i <= 50; ++i) {
    delivered_.Add(ends.slot, 100'000);
    Send(ends, 100'000 + Delivered::kOverhead / 2);
    EXPECT_EQ(Look(std::chrono::milliseconds(100 * i)), 0u);
    EXPECT_EQ(undelivered(), 0u);
  }
}

TEST_F(UndeliveredTest, KeepsNoCreditForLater) {
  const Ends ends = Open();
  for (int i = 0; i < 1'000; ++i) delivered_.Add(ends.slot, 100'000);
  EXPECT_EQ(Look(std::chrono::milliseconds(100)), 0u);
  Send(ends, 2 * kMiB);
  EXPECT_EQ(Look(std::chrono::milliseconds(200)), 1u) << undelivered() << " bytes undelivered";
}

TEST_F(UndeliveredTest, SparesALargeRequestOnItsWayBesideOneThatAskedForNothingLonger) {
  const Ends attacker = Open();
  Send(attacker, 400'000);
  EXPECT_EQ(Look(std::chrono::milliseconds(10'000)), 0u);
  const Ends busy = Open();
  delivered_.Add(busy.slot, 0);
  EXPECT_EQ(Look(std::chrono::milliseconds(10'100)), 0u);
  Send(busy, 800'000);
  EXPECT_EQ(Look(std::chrono::milliseconds(10'200)), 1u);
  EXPECT_TRUE(IsReset(attacker));
  EXPECT_FALSE(IsReset(busy));
}

TEST_F(UndeliveredTest, SparesALargeRequestOnItsWayBesideManyThatHoldALittleEach) {
  const Ends idle = Open();
  std::vector<Ends> many;
  for (int i = 0; i < 40; ++i) {
    many.push_back(Open());
    Send(many.back(), kAllowance + 20'000);
  }
  for (int i = 1; i <= 30; ++i) {
    for (const Ends& ends : many) {
      if (i % 10 == 0) delivered_.Add(ends.slot, 0);  // they make calls beside it
    }
    EXPECT_EQ(Look(std::chrono::milliseconds(100 * i)), 0u);
  }
  Send(idle, 600'000);
  EXPECT_GT(Look(std::chrono::milliseconds(3'100)), 0u);
  EXPECT_FALSE(IsReset(idle)) << "a request that was on its way was taken for what is held";
  EXPECT_GT(std::ranges::count_if(many, IsReset), 5);
}

TEST_F(UndeliveredTest, EndsWhatSentTheMostThoughAllAskAllTheTime) {
  const Ends idle = Open();
  const Ends large = Open();
  const Ends small = Open();
  for (int i = 1; i <= 3; ++i) {
    for (const Ends* ends : {&large, &small}) delivered_.Add(ends->slot, 0);
    EXPECT_EQ(Look(std::chrono::milliseconds(100 * i)), 0u);
  }
  Send(large, 900'000);
  Send(small, 300'000);
  for (const Ends* ends : {&large, &small}) delivered_.Add(ends->slot, 0);
  EXPECT_EQ(Look(std::chrono::milliseconds(400)), 1u);
  EXPECT_TRUE(IsReset(large));
  EXPECT_FALSE(IsReset(small));
  EXPECT_FALSE(IsReset(idle));
}

TEST_F(UndeliveredTest, LeavesWhatCameOnStreamsThatTheServiceReadsNoFurther) {
  const Ends ends = Open();
  Send(ends, kAllowance);
  EXPECT_EQ(Look(std::chrono::milliseconds(100)), 0u);
  for (int stream = 0; stream < 5; ++stream) delivered_.BeginWait(ends.slot);
  Send(ends, 5 * kStreamWindowBytes);
  EXPECT_EQ(Look(std::chrono::milliseconds(200)), 0u);
  EXPECT_EQ(undelivered(), 0u) << "a window for each";
  Send(ends, 100'000);
  EXPECT_EQ(Look(std::chrono::milliseconds(300)), 0u);
  EXPECT_NEAR(static_cast<double>(undelivered()), 100'000, 1'000) << "no more than that";
  // It may just be reading, and wait again by the next look.
  for (int stream = 0; stream < 5; ++stream) delivered_.EndWait(ends.slot);
  EXPECT_EQ(Look(std::chrono::milliseconds(400)), 0u);
  EXPECT_EQ(Look(std::chrono::milliseconds(500)), 1u) << undelivered() << " bytes undelivered, and none waits";
}

TEST_F(UndeliveredTest, SparesAConnectionNoMoreThanTwoMebibytesHoweverManyStreamsWait) {
  const Ends ends = Open();
  for (int stream = 0; stream < 100; ++stream) delivered_.BeginWait(ends.slot);
  Send(ends, 4 * kMiB);
  EXPECT_EQ(Look(std::chrono::milliseconds(100)), 1u) << undelivered() << " bytes undelivered";
}

TEST_F(UndeliveredTest, LeavesPingsAndWhatReadersSay) {
  const Ends ends = Open();
  Send(ends, kAllowance);
  EXPECT_EQ(Look(std::chrono::milliseconds(1)), 0u);
  EXPECT_EQ(undelivered(), 0u) << "a connection's begin";
  Send(ends, 3'000);
  EXPECT_EQ(Look(std::chrono::seconds(60)), 0u);
  EXPECT_EQ(undelivered(), 0u) << "pings of a minute";
  std::string reply(1 << 20, 'x');
  for (int i = 0; i < 4; ++i) {
    ASSERT_EQ(send(ends.server, reply.data(), 64 << 10, MSG_DONTWAIT), 64 << 10);
    ASSERT_EQ(recv(ends.client.get(), reply.data(), 64 << 10, MSG_WAITALL), 64 << 10);
  }
  Send(ends, 3'000);
  EXPECT_EQ(Look(std::chrono::seconds(60)), 0u);
  EXPECT_EQ(undelivered(), 0u) << "WINDOW_UPDATEs for 256 KiB";
}

// gRPC reads in the thread that hands over, for as long as more comes.
TEST_F(AcceptorTest, EndsAConnectionThatHoldsItUpThoughItAcceptsNoMore) {
  absl::StatusOr<Listener> listener = Listener::Open(*ParseAddress("127.0.0.1:0"));
  ASSERT_TRUE(listener.ok()) << listener.status();
  std::vector<Listener> listeners;
  listeners.push_back(*std::move(listener));
  acceptor_ = std::make_unique<Acceptor>(Acceptor::Options{.max_connections = 10,
                                                           .accepted =
                                                               [this](int fd, int) {
                                                                 const Descriptor owner(fd);
                                                                 {
                                                                   MutexLock lock(&mutex_);
                                                                   accepted_.emplace_back();
                                                                   changed_.SignalAll();
                                                                 }
                                                                 std::string data(64 << 10, 'x');
                                                                 for (;;) {
                                                                   const ssize_t some =
                                                                       recv(fd, data.data(), data.size(), 0);
                                                                   if (some == 0 || (some < 0 && errno != EAGAIN))
                                                                     return;
                                                                 }
                                                               },
                                                           .refused = [] {},
                                                           .delivered = delivered_,
                                                           .max_undelivered_bytes = 1 << 20},
                                         std::move(listeners));
  acceptor_->Start();
  const Descriptor client = Connect(address());
  AwaitAccepted(1);
  acceptor_->EndAccepting();
  Descriptor late(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_in where = {};
  where.sin_family = AF_INET;
  where.sin_port = htons(address().port);
  where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_NE(connect(late.get(), reinterpret_cast<sockaddr*>(&where), sizeof where), 0) << "somebody still listens";
  const std::string data(64 << 10, 'x');
  const TimePoint long_after = Clock::now() + std::chrono::seconds(20);
  while (send(client.get(), data.data(), data.size(), MSG_NOSIGNAL) > 0) {
    ASSERT_LT(Clock::now(), long_after) << "nobody ends it";
  }
  EXPECT_TRUE(errno == ECONNRESET || errno == EPIPE) << strerror(errno);
  acceptor_->Stop();
}

TEST_F(AcceptorTest, ReplacesAStaleSocketFileAndRemovesItsOwn) {
  const std::string path = ::testing::TempDir() + "acceptor_test.sock";
  Start("unix:" + path, 10);
  EXPECT_EQ(Listener::Open(*ParseAddress("unix:" + path)).status().code(), absl::StatusCode::kUnavailable)
      << "a socket in use was taken over";
  {
    const Descriptor client = Connect(address());
    AwaitAccepted(1);
  }
  acceptor_->Stop();
  EXPECT_NE(access(path.c_str(), F_OK), 0) << "the socket file is still there";

  // A process that was killed leaves its file.
  sockaddr_un where = {};
  where.sun_family = AF_UNIX;
  path.copy(where.sun_path, sizeof where.sun_path - 1);
  {
    const Descriptor killed(socket(AF_UNIX, SOCK_STREAM, 0));
    ASSERT_EQ(bind(killed.get(), reinterpret_cast<sockaddr*>(&where), sizeof where), 0);
  }
  Start("unix:" + path, 10);
  const Descriptor client = Connect(address());
  AwaitAccepted(2);
}

TEST(ListenerTest, NamesTheAddressItCannotTake) {
  const absl::StatusOr<Listener> first = Listener::Open(*ParseAddress("127.0.0.1:0"));
  ASSERT_TRUE(first.ok()) << first.status();
  const absl::StatusOr<Listener> second = Listener::Open(first->address());
  ASSERT_FALSE(second.ok());
  EXPECT_THAT(std::string(second.status().message()), HasSubstr(first->address().ToString()));
}

}  // namespace
}  // namespace nsa::metadata::server
