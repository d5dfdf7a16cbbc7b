// A TCP connection of which a test has both ends.
#pragma once

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdint>
#include <cstring>

#include "server/acceptor.h"

namespace nsa::metadata::server {

class TcpConnection {
 public:
  void Open() {
    absl::StatusOr<Listener> listener = Listener::Open(*ParseAddress("127.0.0.1:0"));
    ASSERT_TRUE(listener.ok()) << listener.status();
    sockaddr_in where = {};
    where.sin_family = AF_INET;
    where.sin_port = htons(listener->address().port);
    where.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    peer = Descriptor(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    ASSERT_EQ(connect(peer.get(), reinterpret_cast<sockaddr*>(&where), sizeof where), 0) << strerror(errno);
    ours = Descriptor(accept4(listener->fd(), nullptr, nullptr, SOCK_CLOEXEC));
    ASSERT_TRUE(ours) << strerror(errno);
  }

  // Whether our end is told to hold back what is written.
  bool corked() const {
    int on = 0;
    socklen_t size = sizeof on;
    EXPECT_EQ(getsockopt(ours.get(), IPPROTO_TCP, TCP_CORK, &on, &size), 0) << strerror(errno);
    return on != 0;
  }
  // How many segments with data have left our end.
  uint32_t segments() const {
    tcp_info info = {};
    socklen_t size = sizeof info;
    EXPECT_EQ(getsockopt(ours.get(), IPPROTO_TCP, TCP_INFO, &info, &size), 0) << strerror(errno);
    return info.tcpi_data_segs_out;
  }

  Descriptor peer;
  Descriptor ours;
};

}  // namespace nsa::metadata::server
