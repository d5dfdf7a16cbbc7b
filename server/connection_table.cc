#include "server/connection_table.h"

#include <linux/sockios.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <climits>

namespace nsa::metadata::server {
namespace {

// 0 when `fd` is closed.
ino_t Inode(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 ? info.st_ino : 0;
}

// Bytes sent and not acknowledged, or on a Unix socket not read.
int Unsent(int fd) {
  int bytes = 0;
  return ioctl(fd, SIOCOUTQ, &bytes) == 0 ? bytes : 0;
}

// What the peer has taken, in bytes, or, on a Unix socket, something that changes when it takes some.
struct Progress {
  uint64_t value;
  bool is_bytes;
};
Progress ProgressOf(int fd) {
  tcp_info info = {};
  socklen_t size = sizeof info;
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) == 0) return {info.tcpi_bytes_acked, true};
  return {static_cast<uint64_t>(Unsent(fd)), false};
}

constexpr double kLeastBytesPerSecond = 16 * 1024;

}  // namespace

void ConnectionTable::Add(int fd) {
  MutexLock lock(&mutex_);
  connections_[fd] = {.inode = Inode(fd)};
}

size_t ConnectionTable::Sweep() {
  MutexLock lock(&mutex_);
  std::erase_if(connections_, [](const auto& entry) { return Inode(entry.first) != entry.second.inode; });
  return connections_.size();
}

void ConnectionTable::SetReading(bool reading) {
  const auto set = [](int fd, int bytes) { setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes); };
  MutexLock lock(&mutex_);
  for (const auto& [fd, connection] : connections_) {
    if (Inode(fd) != connection.inode) continue;
    // A socket counts as readable once so many bytes are there: the kernel makes it half of its buffer.
    set(fd, reading ? 1 : INT_MAX);
    if (Inode(fd) != connection.inode) set(fd, 1);  // it has become another's meanwhile
  }
}

size_t ConnectionTable::ShutDownSent() {
  MutexLock lock(&mutex_);
  std::erase_if(connections_, [](const auto& entry) {
    const auto& [fd, connection] = entry;
    if (Inode(fd) != connection.inode) return true;
    if (Unsent(fd) > 0) return false;
    shutdown(fd, SHUT_RDWR);
    return true;
  });
  return connections_.size();
}

size_t ConnectionTable::ShutDownStalled(TimePoint now, Clock::duration timeout) {
  size_t ended = 0;
  MutexLock lock(&mutex_);
  for (auto it = connections_.begin(); it != connections_.end();) {
    const int fd = it->first;
    if (!Stalled(fd, it->second, now, timeout)) {
      ++it;
      continue;
    }
    if (Inode(fd) == it->second.inode) {
      // gRPC closes it next: by a reset, so that the kernel too forgets what is not read.
      const linger at_once = {.l_onoff = 1, .l_linger = 0};
      setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
      shutdown(fd, SHUT_RDWR);
      ++ended;
    }
    it = connections_.erase(it);
  }
  return ended;
}

bool ConnectionTable::Stalled(int fd, Connection& connection, TimePoint now, Clock::duration timeout) const {
  // One system call for those that are not busy; a descriptor that is another's by now is found out before it is shut.
  const auto unsent = static_cast<uint64_t>(Unsent(fd));
  if (unsent == 0) {
    connection.busy_since = {};
    return false;
  }
  const Progress progress = ProgressOf(fd);
  const std::chrono::duration<double> busy = now - connection.busy_since;
  const uint64_t taken = progress.value - connection.progress;
  const auto enough =
      progress.is_bytes ? std::min(connection.unsent, static_cast<uint64_t>(kLeastBytesPerSecond * busy.count())) : 1;
  if (connection.busy_since == TimePoint() || taken >= enough) {
    // A peer that takes what there is, and is sent a little now and then, is no slow one.
    connection = {.inode = connection.inode, .busy_since = now, .progress = progress.value, .unsent = unsent};
    return false;
  }
  return busy >= timeout;
}

size_t ConnectionTable::size() const {
  MutexLock lock(&mutex_);
  return connections_.size();
}

}  // namespace nsa::metadata::server
