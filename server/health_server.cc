#include "server/health_server.h"

#include <chrono>

#include "absl/strings/str_cat.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/server_builder.h"
#include "server/clock.h"
#include "server/completion_queue.h"
#include "server/server_options.h"

namespace nsa::metadata::server {
namespace {

// A thread that waits inside gRPC polls all of the process's connections, and takes events from the threads that they
// are for. So this one looks only now and then: each step of a probe waits this long at most, a load pays nothing.
constexpr std::chrono::milliseconds kLookEvery(20);

}  // namespace

absl::StatusOr<std::unique_ptr<HealthServer>> HealthServer::Start(const Address& address) {
  std::unique_ptr<HealthServer> health(new HealthServer);
  health->address_ = address;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort(address.ToString(), grpc::InsecureServerCredentials(), &port);
  health->health_.Register(builder);
  health->queue_ = builder.AddCompletionQueue();
  builder.SetOption(WithoutReflection());
  // Without it a second server on the port would share it unnoticed.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  health->server_ = builder.BuildAndStart();
  if (health->server_ == nullptr || port == 0) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address.ToString(), " for health"));
  }
  if (!address.is_unix) health->address_.port = static_cast<uint16_t>(port);
  health->health_.AwaitCalls(*health->queue_);
  health->thread_ = std::thread([&server = *health] { server.Run(); });
  return health;
}

HealthServer::~HealthServer() {
  if (thread_.joinable()) {
    health_.EndWatches();
    server_->Shutdown(std::chrono::system_clock::now());
    live_.AwaitNone();
    {
      MutexLock lock(&mutex_);
      stopping_ = true;
      stopped_.SignalAll();
    }
    thread_.join();
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
