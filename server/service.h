// The gRPC methods, on completion queues with a thread each.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <unordered_set>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/server_builder.h"
#include "inference/inference.grpc.pb.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"
#include "server/batcher.h"
#include "server/call_queue.h"
#include "server/callers.h"
#include "server/delivered.h"
#include "server/health_service.h"
#include "server/held_answers.h"
#include "server/inference_statistics.h"
#include "server/lengths_budget.h"
#include "server/live_calls.h"
#include "server/metrics.h"
#include "server/mutex.h"
#include "server/options.h"
#include "server/output_pool.h"
#include "server/reply_message.h"
#include "server/slow_calls.h"
#include "server/trust.h"

namespace nsa::metadata::server {

// Bytes in, bytes out: replies are sent from the blocks they were computed in.
class AsyncService final
    : public v1::MetadataService::WithRawMethod_Expand<v1::MetadataService::WithRawMethod_ExpandStream<
          v1::MetadataService::WithRawMethod_GetServerInfo<v1::MetadataService::Service>>> {
 public:
  using UnaryWriter = grpc::ServerAsyncResponseWriter<ReplyMessage>;
  using Stream = grpc::ServerAsyncReaderWriter<ReplyMessage, grpc::ByteBuffer>;

  // As the generated ones, whose messages are grpc::ByteBuffers both ways. The numbers are the methods' places in the
  // proto.
  void RequestExpand(grpc::ServerContext* context, grpc::ByteBuffer* request, UnaryWriter* writer,
                     grpc::ServerCompletionQueue* queue, void* tag) {
    RequestAsyncUnary(0, context, request, writer, queue, queue, tag);
  }
  void RequestExpandStream(grpc::ServerContext* context, Stream* stream, grpc::ServerCompletionQueue* queue,
                           void* tag) {
    RequestAsyncBidiStreaming(1, context, stream, queue, queue, tag);
  }
  void RequestGetServerInfo(grpc::ServerContext* context, grpc::ByteBuffer* request, UnaryWriter* writer,
                            grpc::ServerCompletionQueue* queue, void* tag) {
    RequestAsyncUnary(2, context, request, writer, queue, queue, tag);
  }
};

// The Open Inference Protocol's, likewise.
class AsyncInferenceService final
    : public inference::GRPCInferenceService::WithRawMethod_ServerLive<
          inference::GRPCInferenceService::WithRawMethod_ServerReady<
              inference::GRPCInferenceService::WithRawMethod_ModelReady<
                  inference::GRPCInferenceService::WithRawMethod_ServerMetadata<
                      inference::GRPCInferenceService::WithRawMethod_ModelMetadata<
                          inference::GRPCInferenceService::WithRawMethod_ModelInfer<
                              inference::GRPCInferenceService::WithRawMethod_ModelConfig<
                                  inference::GRPCInferenceService::WithRawMethod_ModelStatistics<
                                      inference::GRPCInferenceService::Service>>>>>>>> {
 public:
  void Request(Method method, grpc::ServerContext* context, grpc::ByteBuffer* request,
               AsyncService::UnaryWriter* writer, grpc::ServerCompletionQueue* queue, void* tag) {
    const int place = static_cast<int>(method) - static_cast<int>(Method::kServerLive);
    RequestAsyncUnary(place, context, request, writer, queue, queue, tag);
  }
};

class StreamCall;

// The streams that are open, so that a drain can end them. Thread-safe.
class OpenStreams {
 public:
  // False once they drain: then the stream is to drain itself.
  bool Add(StreamCall* stream);
  void Remove(StreamCall* stream);
  void Drain();
  // `crowded`: others need the room of what streams hold.
  void Look(TimePoint now, bool crowded);

 private:
  Mutex mutex_;
  bool was_crowded_ ABSL_GUARDED_BY(mutex_) = false;  // at the last look
  std::unordered_set<StreamCall*> streams_ ABSL_GUARDED_BY(mutex_);
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
};

// Encoded GetServerInfoResponses.
struct ServerInfos {
  std::string info;
  // Once the device has failed.
  std::string device_lost;
};

// What calls need.
struct CallContext {
  const Options& options;
  OutputPool& pool;
  Batcher& batcher;
  Metrics& metrics;
  const Trust& trust;
  Delivered& delivered;
  const ServerInfos infos;
  const Callers callers{options};
  SlowCalls slow_calls{options.slow_call_threshold, callers};
  AsyncService service;
  AsyncInferenceService inference;
  InferenceStatistics inference_statistics;
  grpc::AsyncGenericService other_methods;
  // New calls on Unix sockets are refused.
  std::atomic<bool> refuses_unix{false};
  LengthsBudget lengths{options.lengths_budget_bytes, options.caller_share};
  LiveCalls live;
  OpenStreams streams;
  HealthService health{live, delivered, options.connection.max_metadata_bytes};
};

// Usage: Register, then build the server, Start, …, DrainStreams, RefuseUnix, shut the server down, Stop.
class Service {
 public:
  Service(const Options& options, OutputPool& pool, Batcher& batcher, Metrics& metrics, const Trust& trust,
          Delivered& delivered, const Descriptors& descriptors, ServerInfos infos);

  // Adds the service and its queues to a server.
  void Register(grpc::ServerBuilder& builder);
  // Begins to take calls, with a thread a queue.
  void Start();
  // What health checks are told. NOT_SERVING at first.
  void SetServing(bool serving) { context_.health.SetServing(serving); }
  // Ends the streams: they answer what they have read. Ends health watches too. Returns at once.
  void DrainStreams();
  // Cancels those of the watches whose callers did not take the end.
  void EndStuckWatches() { context_.health.EndWatches(); }
  // From here on new calls that come on Unix sockets are refused UNAVAILABLE.
  void RefuseUnix() { context_.refuses_unix.store(true, std::memory_order_relaxed); }
  // After the server's Shutdown has returned: waits for the calls that are left, then ends the threads.
  void Stop();

  const LengthsBudget& lengths() const { return context_.lengths; }
  int64_t live_calls() const { return context_.live.count(); }
  const SlowCalls& slow_calls() const { return context_.slow_calls; }

 private:
  const Descriptors& descriptors_;
  CallContext context_;
  std::vector<std::unique_ptr<CallQueue>> queues_;
};

}  // namespace nsa::metadata::server
