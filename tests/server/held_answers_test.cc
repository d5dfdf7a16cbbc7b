#include "server/held_answers.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <string>

#include "server/acceptor.h"

namespace nsa::metadata::server {
namespace {

constexpr DeliverySlot kSlot = 7;

// A connection, of which we have both ends.
class HeldAnswersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    absl::StatusOr<Listener> listener = Listener::Open(*ParseAddress("127.0.0.1:0"));
    ASSERT_TRUE(listener.ok()) << listener.status();
    sockaddr_in where = {};
    where.sin_family = AF_INET;
    where.sin_port = htons(listener->address().port);
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    peer_ = Descriptor(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(connect(peer_.get(), reinterpret_cast<sockaddr*>(&where), sizeof where), 0) << strerror(errno);
    ours_ = Descriptor(accept4(listener->fd(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(ours_) << strerror(errno);
    descriptors_.Set(kSlot, ours_.get());
  }

  void Write(const std::string& text) {
    ASSERT_EQ(send(ours_.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size())) << strerror(errno);
  }
  // So many bytes, waited for; or what is there now, for 0.
  std::string Read(size_t bytes) {
    char buffer[64];
    const ssize_t got =
        recv(peer_.get(), buffer, bytes == 0 ? sizeof buffer : bytes, bytes == 0 ? MSG_DONTWAIT : MSG_WAITALL);
    return got > 0 ? std::string(buffer, static_cast<size_t>(got)) : "";
  }
  uint32_t Segments() const {
    tcp_info info = {};
    socklen_t size = sizeof info;
    EXPECT_EQ(getsockopt(ours_.get(), IPPROTO_TCP, TCP_INFO, &info, &size), 0) << strerror(errno);
    return info.tcpi_data_segs_out;
  }

  Descriptors descriptors_;
  Descriptor ours_;
  Descriptor peer_;
};

TEST_F(HeldAnswersTest, WhatIsHeldLeavesInOneSegmentOnceItIsReleased) {
  HeldAnswers held(descriptors_);
  EXPECT_TRUE(held.empty());
  held.Hold(kSlot);
  held.Hold(kSlot);
  EXPECT_FALSE(held.empty());
  Write("one");
  Write("two");
  EXPECT_EQ(Segments(), 0u) << "nothing was to leave yet";
  EXPECT_EQ(Read(0), "");
  held.Release();
  EXPECT_TRUE(held.empty());
  EXPECT_EQ(Segments(), 1u);
  EXPECT_EQ(Read(6), "onetwo");
  Write("three");
  EXPECT_EQ(Segments(), 2u);
  EXPECT_EQ(Read(5), "three") << "what comes after it is not held";
}

TEST_F(HeldAnswersTest, WhatIsStillHeldAtTheEndLeaves) {
  {
    HeldAnswers held(descriptors_);
    held.Hold(kSlot);
    Write("one");
    EXPECT_EQ(Segments(), 0u) << "nothing was to leave yet";
  }
  EXPECT_EQ(Segments(), 1u);
  EXPECT_EQ(Read(3), "one");
}

TEST_F(HeldAnswersTest, ADescriptorThatIsNoConnectionsAnyMoreIsLeftAlone) {
  HeldAnswers held(descriptors_);
  held.Hold(kNoSlot);
  held.Hold(kSlot + 1);
  EXPECT_TRUE(held.empty()) << "there is no connection there";
  const int fd = ours_.get();
  ours_.Close();
  held.Hold(kSlot);
  EXPECT_TRUE(held.empty()) << "it is closed";
  const Descriptor file(open("/dev/null", O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(dup2(file.get(), fd), fd) << strerror(errno);
  ours_ = Descriptor(fd);
  held.Hold(kSlot);
  EXPECT_TRUE(held.empty()) << "it is a file";
}

}  // namespace
}  // namespace nsa::metadata::server
