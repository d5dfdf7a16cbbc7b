#include "server/service.h"

#include <algorithm>
#include <functional>
#include <utility>

#include "absl/time/time.h"
#include "server/completion_queue.h"
#include "server/inference_calls.h"
#include "server/other_call.h"
#include "server/stream_call.h"
#include "server/unary_call.h"

namespace nsa::metadata::server {
namespace {

// Timeouts are kept to a quarter, or to a second.
Clock::duration LookPeriod(const Options& options) {
  const absl::Duration shortest = std::min(options.write_stall_timeout, options.stream_idle_timeout);
  return absl::ToChronoNanoseconds(std::clamp(shortest / 4, absl::Milliseconds(1), absl::Seconds(1)));
}

HeldKinds HeldKindsOf(const Options& options) {
  if (options.hold_answers == "none") return HeldKinds::kNone;
  return options.hold_answers == "streams" ? HeldKinds::kStreams : HeldKinds::kAll;
}

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

void OpenStreams::Look(TimePoint now, bool crowded) {
  MutexLock lock(&mutex_);
  const bool still_crowded = std::exchange(was_crowded_, crowded) && crowded;
  for (StreamCall* stream : streams_) stream->Look(now, still_crowded);
}

Service::Service(const Options& options, OutputPool& pool, Batcher& batcher, Metrics& metrics, const Trust& trust,
                 Delivered& delivered, const Descriptors& descriptors, ServerInfos infos)
    : descriptors_(descriptors),
      context_{.options = options,
               .pool = pool,
               .batcher = batcher,
               .metrics = metrics,
               .trust = trust,
               .delivered = delivered,
               .infos = std::move(infos),
               .service = {},
               .inference = {},
               .inference_statistics = {},
               .other_methods = {},
               .live = {},
               .streams = {}} {}

void Service::Register(grpc::ServerBuilder& builder) {
  builder.RegisterService(&context_.service);
  builder.RegisterService(&context_.inference);
  builder.RegisterAsyncGenericService(&context_.other_methods);
  context_.health.Register(builder);
  const HeldKinds hold = HeldKindsOf(context_.options);
  for (int64_t i = 0; i < context_.options.completion_queues; ++i) {
    queues_.push_back(std::make_unique<CallQueue>(builder.AddCompletionQueue(), descriptors_, hold));
  }
}

void Service::Start() {
  AwaitGetServerInfo(context_, *queues_.front());
  AwaitInferenceQuestions(context_, *queues_.front());
  for (const auto& queue : queues_) {
    AwaitExpand(context_, *queue);
    AwaitModelInfer(context_, *queue);
    StreamCall::Await(context_, *queue);
    OtherCall::Await(context_, *queue);
    context_.health.AwaitCalls(*queue->get());
    // Streams are looked at once, whichever queues they are of.
    const bool first = queue == queues_.front();
    queue->Start(LookPeriod(context_.options),
                 first ? [this](TimePoint now) { context_.streams.Look(now, context_.pool.nearly_used()); }
                       : std::function<void(TimePoint)>());
  }
}

void Service::DrainStreams() {
  context_.streams.Drain();
  context_.health.EndWatches();
}

void Service::Stop() {
  // A queue that is shut down aborts the process when an answer is put on it.
  context_.live.AwaitNone();
  for (const auto& queue : queues_) queue->Stop();
}

}  // namespace nsa::metadata::server
