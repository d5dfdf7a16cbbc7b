// Our own accepting of connections: gRPC's has no limit on their number, and sets none of the socket options that end a
// stuck one.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/address.h"
#include "server/clock.h"
#include "server/connection_table.h"
#include "server/delivered.h"
#include "server/metrics.h"

namespace nsa::metadata::server {

// An owned descriptor.
class Descriptor {
 public:
  explicit Descriptor(int fd = -1) : fd_(fd) {}
  Descriptor(Descriptor&& other) noexcept : fd_(other.Release()) {}
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor() { Close(); }
  int get() const { return fd_; }
  explicit operator bool() const { return fd_ >= 0; }
  int Release();
  void Close();

 private:
  int fd_;
};

// A listening socket.
class Listener {
 public:
  // Listens on `address`; its port 0 takes a free one. A stale socket file is replaced, one that is in use is not.
  // UNAVAILABLE naming the address and the error.
  static absl::StatusOr<Listener> Open(const Address& address);
  // One on each, or the first error: INVALID_ARGUMENT where an address can't be read.
  static absl::StatusOr<std::vector<Listener>> OpenAll(const std::vector<std::string>& addresses);
  Listener(Listener&&) = default;
  Listener& operator=(Listener&&) = default;

  int fd() const { return fd_.get(); }
  // The address with the port that was taken.
  const Address& address() const { return address_; }
  // Ends listening, whoever else looks at the descriptor; removes the socket file. Idempotent.
  void EndListening();

 private:
  Listener(Descriptor fd, Address address) : fd_(std::move(fd)), address_(std::move(address)) {}
  Descriptor fd_;
  Address address_;
  bool listening_ = true;
};

// Accepts on all listeners, on a thread, and ends the connections that harm others, on another.
class Acceptor {
 public:
  struct Options {
    // One more is closed.
    size_t max_connections = 0;
    // Gets a connection's descriptor, and the listener's; owns the first.
    std::function<void(int fd, int listener_fd)> accepted;
    // A connection was closed on arrival.
    std::function<void()> refused;
    // What the connections' requests are counted in.
    const Delivered& delivered;
    // How long a connection's peer may take next to nothing of what is written; see ConnectionTable::ShutDownStalled.
    Clock::duration stall_timeout = std::chrono::hours(24);
    // What all connections may have sent that is no request, which is looked at where there is a bound; see
    // ConnectionTable::ShutDownUndelivered.
    uint64_t max_undelivered_bytes = UINT64_MAX;
    // So many connections were ended for one of these.
    std::function<void(ConnectionEnd why, size_t count)> ended = [](ConnectionEnd, size_t) {};
  };

  Acceptor(Options options, std::vector<Listener> listeners);
  ~Acceptor() { Stop(); }
  Acceptor(const Acceptor&) = delete;

  void Start();
  // Accepts no more: who comes finds nobody listening. Does not wait for what is being handed over. Idempotent.
  void EndAccepting();
  // The same, and waits for its threads: until then those that harm others are ended. Idempotent.
  void Stop();

  const std::vector<Listener>& listeners() const { return listeners_; }
  ConnectionTable& connections() { return connections_; }

 private:
  // Accepts, and hands over. gRPC may keep the thread for as long as more comes on a connection that it is given.
  void Run();
  // Ends what is to be ended. On a thread of its own: whoever keeps the other busy may be whom to end.
  void Look();
  void EndStalled(TimePoint now);
  void EndUndelivered(TimePoint now);
  // Accepts what waits on one listener, some at a time.
  void AcceptFrom(const Listener& listener);
  // With no descriptor left: gives the spare one for a connection, which is closed, so that it does not wait for
  // nothing.
  void RefuseForWantOfDescriptors(const Listener& listener);
  bool Full();

  Options options_;
  std::vector<Listener> listeners_;
  ConnectionTable connections_;
  std::atomic<bool> accepting_{true};
  Descriptor end_accepting_;
  Descriptor end_looking_;
  Descriptor spare_;
  std::thread thread_;
  std::thread looking_;
};

}  // namespace nsa::metadata::server
