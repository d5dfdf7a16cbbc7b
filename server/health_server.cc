#include "server/health_server.h"

#include <sys/resource.h>

#include <algorithm>
#include <chrono>
#include <utility>

#include "server/clock.h"
#include "server/completion_queue.h"
#include "server/grpc_connections.h"
#include "server/server_options.h"

namespace nsa::metadata::server {
namespace {

// A thread that waits inside gRPC polls all of the process's connections, and takes events from the threads that they
// are for. So this one looks only now and then: each step of a probe waits this long at most, a load pays nothing.
constexpr std::chrono::milliseconds kLookEvery(20);

// Probes come now and then, each on a connection or several on one that is kept. The next one more ends the oldest, so
// that who opens many keeps no probe from being answered; they are of the descriptors that the callers' connections
// leave (see Resolve), and where those are few, few.
size_t MostConnections() {
  constexpr rlim_t kMost = 100;
  rlimit descriptors = {};
  getrlimit(RLIMIT_NOFILE, &descriptors);
  return std::min(kMost, std::max<rlim_t>(descriptors.rlim_cur / 8, 4));
}

// Beyond this those go that sent the most of it: probes say little, and one that never ends may keep gRPC's thread, and
// with it the accepting of others.
constexpr uint64_t kMaxUndeliveredBytes = 1 << 20;

ConnectionOptions OfProbes() {
  ConnectionOptions options;
  options.max_receive_message = 4 << 10;              // the name of a service
  options.max_connection_age = absl::Hours(24 * 20);  // who watches keeps doing so
  return options;
}

}  // namespace

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::Start(const Address& address, Delivered& delivered,
                                                                  Metrics& metrics) {
  absl::StatusOr<Listener> listener = Listener::Open(address);
  if (!listener.ok()) return listener.status();
  std::vector<Listener> listeners;
  listeners.push_back(*std::move(listener));

  std::unique_ptr<HealthServer> health(new HealthServer(delivered));
  grpc::ServerBuilder builder;
  SetConnectionArguments(builder, OfProbes());
  health->health_.Register(builder);
  health->queue_ = builder.AddCompletionQueue();
  builder.SetOption(WithoutReflection());
  health->connections_ = AddConnections(builder);
  health->server_ = builder.BuildAndStart();
  if (health->server_ == nullptr) return absl::InternalError("gRPC did not start a server for health");
  health->acceptor_ = std::make_unique<Acceptor>(
      Acceptor::Options{.max_connections = MostConnections(),
                        .when_full = Acceptor::WhenFull::kEndOldest,
                        .accepted = [&connections = *health->connections_](
                                        int fd, int listener_fd) { HandOver(fd, listener_fd, connections); },
                        .refused = [&metrics] { metrics.ConnectionRefused(); },
                        .delivered = delivered,
                        .max_undelivered_bytes = kMaxUndeliveredBytes,
                        .ended = [&metrics](ConnectionEnd why, size_t count) { metrics.ConnectionsEnded(why, count); }},
      std::move(listeners));
  health->health_.AwaitCalls(*health->queue_);
  health->thread_ = std::thread([&server = *health] { server.Run(); });
  health->acceptor_->Start();
  return health;
}

HealthServer::~HealthServer() {
  if (thread_.joinable()) {
    acceptor_->EndAccepting();
    health_.EndWatches();
    server_->Shutdown(std::chrono::system_clock::now());
    live_.AwaitNone();
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
      stopped_.SignalAll();
    }
    thread_.join();
    acceptor_->Stop();
  }
  if (queue_ == nullptr) return;
  queue_->Shutdown();
  RunQueue(*queue_);
}

void HealthServer::Run() {
  MutexLock lock(&mutex_);
  while (!stopping_) {
    mutex_.Unlock();
    void* tag = nullptr;
    bool ok = false;
    while (queue_->AsyncNext(&tag, &ok, std::chrono::system_clock::now()) == grpc::CompletionQueue::GOT_EVENT) {
      Proceed(tag, ok);
    }
    mutex_.Lock();
    if (!stopping_) stopped_.WaitUntil(mutex_, Clock::now() + kLookEvery);
  }
}

}  // namespace nsa::metadata::server
