#include "server/service.h"

#include <utility>

#include "server/completion_queue.h"
#include "server/other_call.h"
#include "server/stream_call.h"
#include "server/unary_call.h"

namespace nsa::metadata::server {
namespace {

// Expand calls that a queue waits for at once: a burst finds a taker without a turn of the queue's thread each.
constexpr int kExpandCallsWaiting = 32;

}  // namespace

bool OpenStreams::Add(StreamCall* stream) {
  MutexLock lock(&mutex_);
  streams_.insert(stream);
  return !draining_;
}

void OpenStreams::Remove(StreamCall* stream) {
  MutexLock lock(&mutex_);
  streams_.erase(stream);
}

void OpenStreams::Drain() {
  MutexLock lock(&mutex_);
  draining_ = true;
  for (StreamCall* stream : streams_) stream->Drain();
}

Service::Service(const Options& options, OutputPool& pool, Batcher& batcher, Metrics& metrics, ServerInfos infos)
    : context_{.options = options,
               .pool = pool,
               .batcher = batcher,
               .metrics = metrics,
               .infos = std::move(infos),
               .service = {},
               .other_methods = {},
               .live = {},
               .streams = {}} {}

void Service::Register(grpc::ServerBuilder& builder) {
  builder.RegisterService(&context_.service);
  builder.RegisterAsyncGenericService(&context_.other_methods);
  context_.health.Register(builder);
  for (int64_t i = 0; i < context_.options.completion_queues; ++i) queues_.push_back(builder.AddCompletionQueue());
}

void Service::Start() {
  for (const auto& queue : queues_) {
    for (int i = 0; i < kExpandCallsWaiting; ++i) AwaitExpand(context_, *queue);
    AwaitGetServerInfo(context_, *queue);
    StreamCall::Await(context_, *queue);
    OtherCall::Await(context_, *queue);
    context_.health.AwaitCalls(*queue);
    threads_.emplace_back([&queue = *queue] { RunQueue(queue); });
  }
}

void Service::DrainStreams() {
  context_.streams.Drain();
  context_.health.EndWatches();
}

void Service::Stop() {
  // A queue that is shut down aborts the process when an answer is put on it.
  context_.live.AwaitNone();
  for (const auto& queue : queues_) queue->Shutdown();
  for (std::thread& thread : threads_) thread.join();
}

}  // namespace nsa::metadata::server
