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
#include <optional>

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

// gRPC closes it next: by a reset, so that the kernel too forgets what is not read.
void Reset(int fd) {
  const linger at_once = {.l_onoff = 1, .l_linger = 0};
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
  shutdown(fd, SHUT_RDWR);
}

// Nothing where it is not TCP.
std::optional<tcp_info> TcpInfo(int fd) {
  tcp_info info = {};
  socklen_t size = sizeof info;
  if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0) return std::nullopt;
  return info;
}

// What the peer has taken, in bytes, or, on a Unix socket, something that changes when it takes some.
struct Progress {
  uint64_t value;
  bool is_bytes;
};
Progress ProgressOf(int fd) {
  if (const std::optional<tcp_info> info = TcpInfo(fd)) return {info->tcpi_bytes_acked, true};
  return {static_cast<uint64_t>(Unsent(fd)), false};
}

constexpr double kLeastBytesPerSecond = 16 * 1024;

// What peers send beside requests: for every so many bytes that they take, one of WINDOW_UPDATEs; and so many bytes a
// second of PINGs.
constexpr uint64_t kTakenPerUpdate = 64;
constexpr double kPingBytesPerSecond = 1024;

}  // namespace

void ConnectionTable::Add(int fd) {
  MutexLock lock(&mutex_);
  const DeliverySlot slot = SlotOf(PeerOf(fd));
  const TimePoint now = Clock::now();
  connections_[fd] = {.inode = Inode(fd), .slot = slot, .looked = now, .delivered = delivered_.At(slot), .asked = now};
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
      Reset(fd);
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
    connection.busy_since = now;
    connection.progress = progress.value;
    connection.unsent = unsent;
    return false;
  }
  return busy >= timeout;
}

size_t ConnectionTable::ShutDownUndelivered(TimePoint now, uint64_t max_bytes) {
  MutexLock lock(&mutex_);
  undelivered_bytes_ = 0;
  for (auto& [fd, connection] : connections_) {
    CountUndelivered(fd, connection, now);
    undelivered_bytes_ += connection.undelivered;
  }
  size_t ended = 0;
  const auto worse = [now](const auto& a, const auto& b) {
    const auto weight = [now](const Connection& c) {
      return static_cast<double>(c.undelivered) * std::chrono::duration<double>(now - c.asked).count();
    };
    return weight(a.second) < weight(b.second);
  };
  while (undelivered_bytes_ > max_bytes) {
    const auto worst = std::max_element(connections_.begin(), connections_.end(), worse);
    undelivered_bytes_ -= worst->second.undelivered;
    if (Inode(worst->first) == worst->second.inode) {
      Reset(worst->first);
      ++ended;
    }
    connections_.erase(worst);
  }
  return ended;
}

void ConnectionTable::CountUndelivered(int fd, Connection& connection, TimePoint now) const {
  if (connection.slot == kNoSlot) return;
  const std::optional<tcp_info> info = TcpInfo(fd);
  // What waits in the kernel is no memory of gRPC's yet.
  int unread = 0;
  ioctl(fd, SIOCINQ, &unread);
  if (!info || Inode(fd) != connection.inode) {
    connection.undelivered = 0;  // it is gone
    return;
  }
  const uint64_t received = info->tcpi_bytes_received - std::min<uint64_t>(unread, info->tcpi_bytes_received);
  const uint64_t taken = info->tcpi_bytes_acked;
  const uint64_t delivered = delivered_.At(connection.slot);
  const double seconds = std::chrono::duration<double>(now - connection.looked).count();
  const uint64_t came = connection.undelivered + (received - std::min(received, connection.received));
  const uint64_t accounted = (delivered - connection.delivered) + (taken - connection.taken) / kTakenPerUpdate +
                             static_cast<uint64_t>(kPingBytesPerSecond * seconds);
  connection.undelivered = came - std::min(came, accounted);
  const uint64_t allowed = std::min(connection.undelivered, connection.allowance);
  connection.undelivered -= allowed;
  connection.allowance -= allowed;
  if (delivered != connection.delivered) connection.asked = now;
  connection.looked = now;
  connection.received = received;
  connection.taken = taken;
  connection.delivered = delivered;
}

uint64_t ConnectionTable::undelivered_bytes() const {
  MutexLock lock(&mutex_);
  return undelivered_bytes_;
}

size_t ConnectionTable::size() const {
  MutexLock lock(&mutex_);
  return connections_.size();
}

}  // namespace nsa::metadata::server
