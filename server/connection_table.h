// The connections that were handed to gRPC, which owns and closes their descriptors without telling.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <unordered_map>

#include "absl/base/thread_annotations.h"
#include "server/clock.h"
#include "server/delivered.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

// A socket's inode stays its own while a descriptor's number is used again: an entry whose descriptor has another inode
// is a connection that is gone. Thread-safe.
class ConnectionTable {
 public:
  // `delivered` counts what the connections' requests were.
  explicit ConnectionTable(const Delivered& delivered) : delivered_(delivered) {}

  void Add(int fd);
  // Takes out what is gone; returns how many are left. A system call a connection.
  size_t Sweep();
  // As of the last sweep, or more.
  size_t size() const;

  // Whether gRPC is told of what comes on the connections; what comes meanwhile waits in the kernel. TCP only.
  void SetReading(bool reading);
  // Ends those whose peers have got all that was written, and takes them out; returns how many are left.
  size_t ShutDownSent();
  // The same of those that are not TCP, of which SetReading doesn't hold.
  size_t ShutDownSentUnix();
  // Ends those to which bytes were on their way at every look for `timeout`, and whose peers meanwhile took neither
  // what was on its way at first nor 16 KiB a second (of a Unix socket: nothing), and takes them out; returns how many.
  // To be called several times in `timeout`. gRPC doesn't notice them: cancelling their calls leaves it what it has
  // begun to write.
  size_t ShutDownStalled(TimePoint now, Clock::duration timeout);

  // What came on the TCP connections and is no part of a request that was delivered may be memory of gRPC's: a header
  // list or a message that does not end, what goes with streams that were reset. Beside it lies what came on streams
  // that the service reads no further for now, of which a connection may have its window's worth each, 2 MiB in all,
  // and all connections together 64 MiB. Where the rest is more than `max_bytes` of all connections together, ends
  // those that hold the most of it for more than a second, or sent the most of it since without a request, and takes
  // them out; returns how many. To be called again and again.
  size_t ShutDownUndelivered(TimePoint now, uint64_t max_bytes);
  // As of the last call of it.
  uint64_t undelivered_bytes() const;

 private:
  template <typename Of>
  size_t ShutDownSent(const Of& of) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  // The preface, a TLS handshake with certificates.
  static constexpr uint64_t kAllowance = 16 << 10;
  static constexpr uint64_t kMostToBeRead = 2 << 20;
  static constexpr uint64_t kMostToBeReadOfAll = 64 << 20;

  struct Connection {
    ino_t inode;
    // The first look of a row that found bytes on their way; 0: the last one found none.
    TimePoint busy_since = {};
    // As of then: what the peer had taken, and what was on its way.
    uint64_t progress = 0;
    uint64_t unsent = 0;

    DeliverySlot slot = kNoSlot;
    // As of the last look at what came, or the connection's begin: when that was, what had come, what the peer had
    // taken, what the slot had.
    TimePoint looked = {};
    uint64_t received = 0;
    uint64_t taken = 0;
    uint64_t delivered = 0;
    // As of the last look: its streams that waited, the waits that had begun, and what may have come on them.
    uint32_t waiting = 0;
    uint32_t waits = 0;
    uint64_t waits_to_be_read = 0;
    // What came and is no request's, beyond what each connection may, which is left of that; when a request came last.
    uint64_t undelivered = 0;
    uint64_t allowance = kAllowance;
    TimePoint asked = {};
    // The least that was Counted() in the second that began then, so far, and in the one before.
    TimePoint second_began = {};
    uint64_t least = 0;
    uint64_t least_before = 0;
  };
  static uint64_t Spared(const Connection& connection) {
    return std::min(connection.undelivered, connection.waits_to_be_read);
  }
  static uint64_t Counted(const Connection& connection) { return connection.undelivered - Spared(connection); }
  // Of Counted(), what the connection has held for more than a second.
  static uint64_t Held(const Connection& connection) { return std::min(connection.least_before, connection.least); }
  // How much it harms others.
  static double Weight(const Connection& connection, TimePoint now);
  // False if it is gone.
  bool CountUndelivered(int fd, Connection& connection, TimePoint now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool Stalled(int fd, Connection& connection, TimePoint now, Clock::duration timeout) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Delivered& delivered_;
  mutable Mutex mutex_;
  // By descriptor.
  std::unordered_map<int, Connection> connections_ ABSL_GUARDED_BY(mutex_);
  uint64_t undelivered_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nsa::metadata::server
