#include "server/connection_table.h"

#include <sys/stat.h>

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

size_t ConnectionTable::size() const {
  MutexLock lock(&mutex_);
  return inodes_.size();
}

}  // namespace nsa::metadata::server
