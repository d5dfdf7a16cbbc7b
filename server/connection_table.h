// The connections that were handed to gRPC, which owns and closes their descriptors without telling.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

// A socket's inode stays its own while a descriptor's number is used again: an entry whose descriptor has another inode
// is a connection that is gone. Thread-safe.
class ConnectionTable {
 public:
  void Add(int fd);
  // Takes out what is gone; returns how many are left. A system call a connection.
  size_t Sweep();
  // As of the last sweep, or more.
  size_t size() const;

  // Whether gRPC is told of what comes on the connections; what comes meanwhile waits in the kernel. TCP only.
  void SetReading(bool reading);
  // Ends those whose peers have got all that was written, and takes them out; returns how many are left.
  size_t ShutDownSent();

 private:
  mutable Mutex mutex_;
  std::unordered_map<int, ino_t> inodes_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nsa::metadata::server
