#include "server/health_server.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <utility>

#include "spdlog/spdlog.h"

namespace nsa::metadata::server {
namespace {

// Probes come now and then, each on a connection or several on one that is kept. The next one more ends the oldest, so
// that those who open many and stay keep no probe from being answered; they are of the descriptors that the callers'
// connections leave (see Resolve), and where those are few, few.
size_t MostConnections() {
  constexpr rlim_t kMost = 100;
  rlimit descriptors = {};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  return std::min(kMost, std::max<rlim_t>(descriptors.rlim_cur / 8, 4));
}

// Connections accepted in a turn: of a flood of them each has some turns in which to ask before it is the oldest.
constexpr size_t kAcceptsInATurn = 8;
// How long to leave the listener alone when accepting fails for lack of memory or descriptors.
constexpr std::chrono::milliseconds kPause(10);

}  // namespace

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::Start(const Address& address, Metrics& metrics) {
  absl::StatusOr<Listener> listener = Listener::Open(address);
  if (!listener.ok()) return listener.status();
  std::unique_ptr<HealthServer> health(new HealthServer(*std::move(listener), metrics));
  health->thread_ = std::thread([&server = *health] {
    while (!server.stopping_) server.Turn();
  });
  return health;
}

HealthServer::HealthServer(Listener listener, Metrics& metrics)
    : listener_(std::move(listener)), metrics_(metrics), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}

HealthServer::~HealthServer() {
  if (!thread_.joinable()) return;
  stopping_ = true;
  eventfd_write(wake_.get(), 1);
  thread_.join();
  listener_.EndListening();
}

void HealthServer::SetServing(bool serving) {
  serving_ = serving;
  eventfd_write(wake_.get(), 1);
}

void HealthServer::Turn() {
  const bool accepts = Clock::now() >= accept_after_;
  std::vector<pollfd> waiting = {{wake_.get(), POLLIN, 0},
                                 {listener_.fd(), static_cast<short>(accepts ? POLLIN : 0), 0}};
  for (const auto& connection : connections_) {
    waiting.push_back({connection->fd(), static_cast<short>(connection->wants_to_write() ? POLLOUT : POLLIN), 0});
  }
  if (poll(waiting.data(), waiting.size(), accepts ? -1 : static_cast<int>(kPause.count())) < 0) {
    if (errno == EINTR) return;
    spdlog::error("health: poll: {}", strerror(errno));
    std::this_thread::sleep_for(kPause);
    return;
  }
  if (waiting[0].revents != 0) {
    eventfd_t count = 0;
    eventfd_read(wake_.get(), &count);
  }
  const bool before = std::exchange(told_, serving_.load());
  size_t i = 2;
  std::erase_if(connections_, [&](const auto& connection) {
    const bool ready = waiting[i++].revents != 0;
    if (told_ != before && !connection->Tell()) return true;
    if (!ready) return false;
    return connection->wants_to_write() ? !connection->Write() : !connection->Read();
  });
  if (waiting[1].revents != 0) Accept();
}

void HealthServer::Accept() {
  const size_t most = MostConnections();
  for (size_t i = 0; i < std::min(kAcceptsInATurn, most / 4); ++i) {
    Descriptor fd(accept4(listener_.fd(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      if (errno == EAGAIN) return;
      if (errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM) continue;  // the connection's own
      accept_after_ = Clock::now() + kPause;
      if (!connections_.empty()) EndOldest();
      return;
    }
    if (connections_.size() >= most) EndOldest();
    connections_.push_back(std::make_unique<HealthConnection>(std::move(fd), told_));
    if (!connections_.back()->Write()) connections_.pop_back();
  }
}

void HealthServer::EndOldest() {
  connections_.erase(connections_.begin());
  metrics_.ConnectionsEnded(ConnectionEnd::kCrowded, 1);
}

}  // namespace nsa::metadata::server
