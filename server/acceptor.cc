#include "server/acceptor.h"

#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "spdlog/spdlog.h"

namespace nsa::metadata::server {
namespace {

constexpr int kBacklog = 4096;
// A peer that acknowledges nothing for this long is gone.
constexpr int kUserTimeoutMs = 20'000;
// What the kernel holds for a reader that doesn't read.
constexpr int kSendBufferBytes = 256 * 1024;
// Connections accepted before the other listeners get their turn.
constexpr int kAcceptsInARow = 64;
// How often to look at what came, of a look's 2 us for each connection a fiftieth of a core at most.
constexpr std::chrono::milliseconds kUndeliveredEvery(100);
constexpr std::chrono::microseconds kEachApart(100);
// How long to leave a listener alone when accepting fails for lack of memory or descriptors.
constexpr int kPauseMs = 10;

absl::Status Failed(const Address& address, const char* what) {
  return absl::UnavailableError(
      absl::StrCat("cannot listen on ", address.ToString(), ": ", what, ": ", strerror(errno)));
}

Descriptor OpenSpare() { return Descriptor(open("/dev/null", O_RDONLY | O_CLOEXEC)); }

// The accepted sockets inherit these.
void SetTcpOptions(int fd) {
  const int on = 1;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &kUserTimeoutMs, sizeof kUserTimeoutMs);
}

absl::Status Listen(int fd, const Address& address, const sockaddr* where, socklen_t size) {
  setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSendBufferBytes, sizeof kSendBufferBytes);
  if (bind(fd, where, size) != 0) return Failed(address, "bind");
  if (listen(fd, kBacklog) != 0) return Failed(address, "listen");
  return absl::OkStatus();
}

// Removes a socket file that nobody listens on any more, and no other file.
void RemoveStale(const sockaddr_un& where) {
  struct stat info;
  if (lstat(where.sun_path, &info) != 0 || !S_ISSOCK(info.st_mode)) return;
  Descriptor probe(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const int connected = connect(probe.get(), reinterpret_cast<const sockaddr*>(&where), sizeof where);
  if (connected != 0 && errno == ECONNREFUSED) unlink(where.sun_path);
}

absl::StatusOr<Descriptor> OpenUnix(const Address& address) {
  sockaddr_un where = {};
  where.sun_family = AF_UNIX;
  address.host.copy(where.sun_path, sizeof where.sun_path - 1);
  RemoveStale(where);
  Descriptor fd(socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return Failed(address, "socket");
  absl::Status status = Listen(fd.get(), address, reinterpret_cast<const sockaddr*>(&where), sizeof where);
  if (!status.ok()) return status;
  return fd;
}

absl::StatusOr<Descriptor> OpenTcp(Address* address) {
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  addrinfo* found = nullptr;
  const int error = getaddrinfo(address->host.c_str(), std::to_string(address->port).c_str(), &hints, &found);
  if (error != 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address->ToString(), ": ", gai_strerror(error)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> owner(found, &freeaddrinfo);
  Descriptor fd(socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return Failed(*address, "socket");
  SetTcpOptions(fd.get());
  absl::Status status = Listen(fd.get(), *address, found->ai_addr, found->ai_addrlen);
  if (!status.ok()) return status;
  sockaddr_storage bound = {};
  socklen_t size = sizeof bound;
  getsockname(fd.get(), reinterpret_cast<sockaddr*>(&bound), &size);
  // The port lies at the same place in both families' addresses.
  address->port = ntohs(reinterpret_cast<const sockaddr_in*>(&bound)->sin_port);
  return fd;
}

}  // namespace

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this != &other) {
    Close();
    fd_ = other.Release();
  }
  return *this;
}

int Descriptor::Release() { return std::exchange(fd_, -1); }

void Descriptor::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

absl::StatusOr<Listener> Listener::Open(const Address& address) {
  Address bound = address;
  absl::StatusOr<Descriptor> fd = bound.is_unix ? OpenUnix(bound) : OpenTcp(&bound);
  if (!fd.ok()) return fd.status();
  return Listener(*std::move(fd), std::move(bound));
}

absl::StatusOr<std::vector<Listener>> Listener::OpenAll(const std::vector<std::string>& addresses) {
  std::vector<Listener> listeners;
  for (const std::string& text : addresses) {
    const absl::StatusOr<Address> address = ParseAddress(text);
    if (!address.ok()) return address.status();
    absl::StatusOr<Listener> listener = Open(*address);
    if (!listener.ok()) return listener.status();
    listeners.push_back(*std::move(listener));
  }
  return listeners;
}

void Listener::EndListening() {
  if (!fd_ || !std::exchange(listening_, false)) return;
  if (address_.is_unix) unlink(address_.host.c_str());
  shutdown(fd_.get(), SHUT_RD);
  // Of a Unix socket those that wait are kept.
  while (Descriptor(accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC))) {
  }
}

Acceptor::Acceptor(Options options, std::vector<Listener> listeners)
    : options_(std::move(options)),
      listeners_(std::move(listeners)),
      connections_(options_.delivered),
      end_accepting_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      end_looking_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      spare_(OpenSpare()) {}

void Acceptor::Start() {
  thread_ = std::thread([this] { Run(); });
  looking_ = std::thread([this] { Look(); });
}

void Acceptor::EndAccepting() {
  accepting_ = false;
  eventfd_write(end_accepting_.get(), 1);
  for (Listener& listener : listeners_) listener.EndListening();
}

void Acceptor::Stop() {
  EndAccepting();
  if (!thread_.joinable()) return;
  thread_.join();
  eventfd_write(end_looking_.get(), 1);
  looking_.join();
}

void Acceptor::Run() {
  std::vector<pollfd> waiting;
  for (const Listener& listener : listeners_) waiting.push_back({listener.fd(), POLLIN, 0});
  waiting.push_back({end_accepting_.get(), POLLIN, 0});
  for (;;) {
    if (poll(waiting.data(), waiting.size(), /*timeout=*/-1) < 0 && errno != EINTR) {
      spdlog::error("accepting stopped: poll: {}", strerror(errno));
      return;
    }
    if (waiting.back().revents != 0) return;
    for (size_t i = 0; i < listeners_.size(); ++i) {
      if (waiting[i].revents != 0) AcceptFrom(listeners_[i]);
    }
  }
}

void Acceptor::Look() {
  pollfd end = {end_looking_.get(), POLLIN, 0};
  // So that one that stalls is ended at most a quarter late.
  const Clock::duration stalled_every = options_.stall_timeout / 4;
  TimePoint look_at_stalled = Clock::now() + stalled_every;
  const bool bounded = options_.max_undelivered_bytes != UINT64_MAX;
  TimePoint look_at_undelivered = bounded ? Clock::now() + kUndeliveredEvery : TimePoint::max();
  for (;;) {
    const TimePoint next_look = std::min(look_at_stalled, look_at_undelivered);
    const auto until_look = std::chrono::ceil<std::chrono::milliseconds>(next_look - Clock::now());
    const auto timeout_ms = std::clamp<int64_t>(until_look.count(), 0, INT_MAX);
    if (poll(&end, 1, static_cast<int>(timeout_ms)) < 0 && errno != EINTR) {
      spdlog::error("looking at connections stopped: poll: {}", strerror(errno));
      return;
    }
    if (end.revents != 0) return;
    if (const TimePoint now = Clock::now(); now >= look_at_stalled) {
      EndStalled(now);
      look_at_stalled = now + stalled_every;
    }
    if (const TimePoint now = Clock::now(); now >= look_at_undelivered) {
      EndUndelivered(now);
      look_at_undelivered = now + std::max<Clock::duration>(kUndeliveredEvery, connections_.size() * kEachApart);
    }
  }
}

void Acceptor::EndStalled(TimePoint now) {
  const size_t ended = connections_.ShutDownStalled(now, options_.stall_timeout);
  if (ended > 0) options_.ended(ConnectionEnd::kStalled, ended);
}

void Acceptor::EndUndelivered(TimePoint now) {
  const size_t ended = connections_.ShutDownUndelivered(now, options_.max_undelivered_bytes);
  if (ended > 0) options_.ended(ConnectionEnd::kUndelivered, ended);
}

void Acceptor::AcceptFrom(const Listener& listener) {
  for (int i = 0; i < kAcceptsInARow; ++i) {
    Descriptor fd(accept4(listener.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        RefuseForWantOfDescriptors(listener);
      } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
        return;
      }
      continue;  // other errors are the connection's own, which is gone
    }
    if (!accepting_) return;
    if (Full()) {
      options_.refused();
      continue;
    }
    connections_.Add(fd.get());
    options_.accepted(fd.Release(), listener.fd());
  }
}

void Acceptor::RefuseForWantOfDescriptors(const Listener& listener) {
  spare_.Close();
  Descriptor refused(accept4(listener.fd(), nullptr, nullptr, SOCK_CLOEXEC));
  if (refused) options_.refused();
  const bool waits = !refused;
  refused.Close();
  spare_ = OpenSpare();
  if (waits || !spare_) {
    pollfd end = {end_accepting_.get(), POLLIN, 0};
    poll(&end, 1, kPauseMs);
  }
}

bool Acceptor::Full() {
  return connections_.size() >= options_.max_connections && connections_.Sweep() >= options_.max_connections;
}

}  // namespace nsa::metadata::server
