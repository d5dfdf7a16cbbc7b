#include "server/held_answers.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>

#include "tests/server/tcp_connection.h"

namespace nsa::metadata::server {
namespace {

constexpr DeliverySlot kSlot = 7;

class HeldAnswersTest : public ::testing::Test {
 protected:
  void SetUp() override {
    connection_.Open();
    descriptors_.Set(kSlot, connection_.ours.get());
  }

  void Write(const std::string& text) {
    ASSERT_EQ(send(connection_.ours.get(), text.data(), text.size(), 0), static_cast<ssize_t>(text.size()))
        << strerror(errno);
  }
  // So many bytes, waited for.
  std::string Read(size_t bytes) {
    std::string text(bytes, '\0');
    EXPECT_EQ(recv(connection_.peer.get(), text.data(), bytes, MSG_WAITALL), static_cast<ssize_t>(bytes))
        << strerror(errno);
    return text;
  }
  // Writes twice while `held` holds. How many segments have left meanwhile; again where that took so long that the
  // kernel may have sent them by itself.
  uint32_t WriteTwice(HeldAnswers& held) {
    for (;;) {
      const uint32_t before = connection_.segments();
      const TimePoint start = Clock::now();
      held.Hold(kSlot);
      held.Hold(kSlot);
      Write("one");
      Write("two");
      const uint32_t left = connection_.segments() - before;
      if (Clock::now() - start < std::chrono::milliseconds(100)) return left;
      held.Release();
      Read(6);
    }
  }

  TcpConnection connection_;
  Descriptors descriptors_;
};

TEST_F(HeldAnswersTest, WhatIsHeldLeavesOnceItIsReleased) {
  HeldAnswers held(descriptors_);
  EXPECT_TRUE(held.empty());
  EXPECT_EQ(WriteTwice(held), 0u) << "nothing was to leave yet";
  EXPECT_FALSE(held.empty());
  EXPECT_TRUE(connection_.corked());
  held.Release();
  EXPECT_TRUE(held.empty());
  EXPECT_FALSE(connection_.corked());
  EXPECT_EQ(Read(6), "onetwo");
  const uint32_t before = connection_.segments();
  Write("three");
  EXPECT_EQ(connection_.segments(), before + 1) << "what comes after it is not held";
  EXPECT_EQ(Read(5), "three");
}

TEST_F(HeldAnswersTest, WhatIsStillHeldAtTheEndLeaves) {
  {
    HeldAnswers held(descriptors_);
    EXPECT_EQ(WriteTwice(held), 0u) << "nothing was to leave yet";
  }
  EXPECT_FALSE(connection_.corked());
  EXPECT_EQ(Read(6), "onetwo");
}

TEST_F(HeldAnswersTest, WhatAThreadHoldsIsReleasedByItAnywhere) {
  HeldAnswers held(descriptors_);
  HeldAnswers::ReleaseOfThisThread();  // nothing
  held.Hold(kSlot);
  std::thread([] { HeldAnswers::ReleaseOfThisThread(); }).join();
  EXPECT_TRUE(connection_.corked()) << "by another thread";
  HeldAnswers::ReleaseOfThisThread();
  EXPECT_FALSE(connection_.corked());
  EXPECT_TRUE(held.empty());
}

TEST_F(HeldAnswersTest, WhatIsOldIsReleasedAsOld) {
  HeldAnswers held(descriptors_);
  bool too_soon = false;
  const TimePoint start = Clock::now();
  held.Hold(kSlot);
  while (!held.old()) {
    HeldAnswers::ReleaseOldOfThisThread();
    too_soon |= held.empty() && Clock::now() - start < HeldAnswers::kLongest;
    if (held.empty()) break;
  }
  EXPECT_FALSE(too_soon);
  HeldAnswers::ReleaseOldOfThisThread();
  EXPECT_TRUE(held.empty());
  EXPECT_FALSE(connection_.corked());
  EXPECT_FALSE(held.old()) << "nothing is held";
}

TEST_F(HeldAnswersTest, ADescriptorThatIsNoConnectionsAnyMoreIsLeftAlone) {
  HeldAnswers held(descriptors_);
  held.Hold(kNoSlot);
  held.Hold(kSlot + 1);
  EXPECT_TRUE(held.empty()) << "there is no connection there";
  const int fd = connection_.ours.get();
  connection_.ours.Close();
  held.Hold(kSlot);
  EXPECT_TRUE(held.empty()) << "it is closed";
  const Descriptor file(open("/dev/null", O_WRONLY | O_CLOEXEC));
  ASSERT_EQ(dup2(file.get(), fd), fd) << strerror(errno);
  connection_.ours = Descriptor(fd);
  held.Hold(kSlot);
  EXPECT_TRUE(held.empty()) << "it is a file";
}

}  // namespace
}  // namespace nsa::metadata::server
