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
#include <functional>
#include <optional>
#include <utility>
#include <vector>

#include "server/grpc_connections.h"

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
constexpr double kPingBytesPerSecond = 64;

// What came within the last second or two weighs by the seconds without a request, between these; what is held for
// longer as much as if it had come for so many.
constexpr double kLeastAge = 0.1;
constexpr double kMostAge = 1;
constexpr double kHeldAge = 60;
constexpr std::chrono::seconds kSecond(1);

}  // namespace

void ConnectionTable::Add(int fd) {
  MutexLock lock(&mutex_);
  const DeliverySlot slot = SlotOf(PeerOf(fd));
  const TimePoint now = Clock::now();
  connections_[fd] = {.inode = Inode(fd),
                      .slot = slot,
                      .looked = now,
                      .delivered = delivered_.At(slot),
                      .asked = now,
                      .second_began = now};
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

template <typename Of>
size_t ConnectionTable::ShutDownSent(const Of& of) {
  size_t left = 0;
  std::erase_if(connections_, [&](const auto& entry) {
    const auto& [fd, connection] = entry;
    if (Inode(fd) != connection.inode) return true;
    if (!of(connection)) return false;
    if (Unsent(fd) > 0) {
      ++left;
      return false;
    }
    shutdown(fd, SHUT_RDWR);
    return true;
  });
  return left;
}

size_t ConnectionTable::ShutDownSent() {
  MutexLock lock(&mutex_);
  return ShutDownSent([](const Connection&) { return true; });
}

size_t ConnectionTable::ShutDownSentUnix() {
  MutexLock lock(&mutex_);
  return ShutDownSent([](const Connection& connection) { return connection.slot == kNoSlot; });
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
  uint64_t spared = 0;
  for (auto it = connections_.begin(); it != connections_.end();) {
    if (CountUndelivered(it->first, it->second, now)) {
      spared += Spared(it->second);
      ++it;
    } else {
      it = connections_.erase(it);
    }
  }
  // Where all of them are spared more than they may be together, each is spared a part.
  const double part =
      std::min(1.0, static_cast<double>(kMostToBeReadOfAll) / static_cast<double>(std::max<uint64_t>(spared, 1)));
  undelivered_bytes_ = 0;
  for (auto& [fd, connection] : connections_) {
    connection.waits_to_be_read = static_cast<uint64_t>(static_cast<double>(Spared(connection)) * part);
    const uint64_t counted = Counted(connection);
    undelivered_bytes_ += counted;
    connection.least = std::min(connection.least, counted);
    if (now - connection.second_began < kSecond) continue;
    connection.second_began = now;
    connection.least_before = std::exchange(connection.least, counted);
  }
  if (undelivered_bytes_ <= max_bytes) return 0;
  std::vector<std::pair<double, int>> worst;
  for (const auto& [fd, connection] : connections_) {
    if (const double weight = Weight(connection, now); weight > 0) worst.emplace_back(weight, fd);
  }
  std::ranges::sort(worst, std::greater());
  size_t ended = 0;
  for (const auto& [weight, fd] : worst) {
    if (undelivered_bytes_ <= max_bytes) break;
    const auto connection = connections_.find(fd);
    undelivered_bytes_ -= Counted(connection->second);
    if (Inode(fd) == connection->second.inode) {  // not another's since it was looked at
      Reset(fd);
      ++ended;
    }
    connections_.erase(connection);
  }
  return ended;
}

// A request on its way is there for a moment, and a caller that has others answered meanwhile is no stranger: each
// weighs little. What is held weighs the more, however many connections share it and whatever calls they make beside
// it.
double ConnectionTable::Weight(const Connection& connection, TimePoint now) {
  const uint64_t held = Held(connection);
  const double age = std::chrono::duration<double>(now - connection.asked).count();
  return static_cast<double>(held) * kHeldAge +
         static_cast<double>(Counted(connection) - held) * std::clamp(age, kLeastAge, kMostAge);
}

bool ConnectionTable::CountUndelivered(int fd, Connection& connection, TimePoint now) const {
  if (connection.slot == kNoSlot) return true;
  // Before what has come: a request that is delivered meanwhile is in what came next time.
  const uint64_t delivered = delivered_.At(connection.slot);
  // What waits in the kernel is no memory of gRPC's yet. Asked before the total: what comes meanwhile counts next time.
  int unread = 0;
  ioctl(fd, SIOCINQ, &unread);
  const std::optional<tcp_info> info = TcpInfo(fd);
  if (!info || Inode(fd) != connection.inode) return false;
  const uint64_t unread_bytes = std::min<uint64_t>(unread, info->tcpi_bytes_received);
  const uint64_t received = std::max<uint64_t>(connection.received, info->tcpi_bytes_received - unread_bytes);
  const uint64_t taken = info->tcpi_bytes_acked;
  const double seconds = std::chrono::duration<double>(now - connection.looked).count();
  const uint64_t came = connection.undelivered + received - connection.received;
  const uint64_t accounted = (delivered - connection.delivered) + (taken - connection.taken) / kTakenPerUpdate +
                             static_cast<uint64_t>(kPingBytesPerSecond * seconds);
  connection.undelivered = came - std::min(came, accounted);
  const uint64_t allowed = std::min(connection.undelivered, connection.allowance);
  connection.undelivered -= allowed;
  connection.allowance -= allowed;
  const uint32_t waiting = delivered_.Waiting(connection.slot);
  const uint32_t waits = delivered_.Waits(connection.slot);
  // A busy stream waits most of the time, and may just not be doing so.
  const uint64_t streams = std::max({waiting, connection.waiting, waits != connection.waits ? 1u : 0u});
  connection.waits_to_be_read = std::min(streams * kStreamWindowBytes, kMostToBeRead);
  connection.waiting = waiting;
  connection.waits = waits;
  if (delivered != connection.delivered) connection.asked = now;
  connection.looked = now;
  connection.received = received;
  connection.taken = taken;
  connection.delivered = delivered;
  return true;
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
