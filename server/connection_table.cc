#include "server/connection_table.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include <climits>

namespace nsa::metadata::server {
namespace {

// 0 when `fd` is closed.
ino_t Inode(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 ? info.st_ino : 0;
}

}  // namespace

void ConnectionTable::Add(int fd) {
  MutexLock lock(&mutex_);
  inodes_[fd] = Inode(fd);
}

size_t ConnectionTable::Sweep() {
  MutexLock lock(&mutex_);
  std::erase_if(inodes_, [](const auto& entry) { return Inode(entry.first) != entry.second; });
  return inodes_.size();
}

void ConnectionTable::SetReading(bool reading) {
  const auto set = [](int fd, int bytes) { setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, &bytes, sizeof bytes); };
  MutexLock lock(&mutex_);
  for (const auto& [fd, inode] : inodes_) {
    if (Inode(fd) != inode) continue;
    // A socket counts as readable once so many bytes are there: the kernel makes it half of its buffer.
    set(fd, reading ? 1 : INT_MAX);
    if (Inode(fd) != inode) set(fd, 1);  // it has become another's meanwhile
  }
}

size_t ConnectionTable::ShutDownSent() {
  MutexLock lock(&mutex_);
  std::erase_if(inodes_, [](const auto& entry) {
    const auto& [fd, inode] = entry;
    if (Inode(fd) != inode) return true;
    int unsent = 0;  // or sent and not acknowledged
    if (ioctl(fd, SIOCOUTQ, &unsent) == 0 && unsent > 0) return false;
    shutdown(fd, SHUT_RDWR);
    return true;
  });
  return inodes_.size();
}

size_t ConnectionTable::size() const {
  MutexLock lock(&mutex_);
  return inodes_.size();
}

}  // namespace nsa::metadata::server
