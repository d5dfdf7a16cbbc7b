// The gRPC methods, on completion queues with a thread each.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "grpcpp/generic/async_generic_service.h"
#include "grpcpp/server_builder.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"
#include "server/batcher.h"
#include "server/metrics.h"
#include "server/options.h"
#include "server/output_pool.h"

namespace nsa::metadata::server {

// Bytes in, bytes out: replies are sent from the blocks they were computed in.
using AsyncService = v1::MetadataService::WithRawMethod_Expand<
    v1::MetadataService::WithRawMethod_GetServerInfo<v1::MetadataService::Service>>;

// Counts calls from their arrival until gRPC is done with them. Thread-safe.
class LiveCalls {
 public:
  void Begin() { count_.fetch_add(1, std::memory_order_relaxed); }
  void End();
  int64_t count() const { return count_.load(std::memory_order_relaxed); }
  // Blocks until there is none.
  void AwaitNone();

 private:
  std::atomic<int64_t> count_{0};
  absl::Mutex mutex_;
  absl::CondVar none_;
};

// What calls need.
struct CallContext {
  const Options& options;
  OutputPool& pool;
  Batcher& batcher;
  Metrics& metrics;
  // The encoded GetServerInfoResponse.
  std::string server_info;
  AsyncService service;
  grpc::AsyncGenericService other_methods;
  LiveCalls live;
};

// Usage: Register, then build the server, Start, …, shut the server down, Stop.
class Service {
 public:
  Service(const Options& options, OutputPool& pool, Batcher& batcher, Metrics& metrics,
          const v1::GetServerInfoResponse& info);

  // Adds the service and its queues to a server.
  void Register(grpc::ServerBuilder& builder);
  // Begins to take calls, with a thread a queue.
  void Start();
  // After the server's Shutdown has returned: waits for the calls that are left, then ends the threads.
  void Stop();

  int64_t live_calls() const { return context_.live.count(); }

 private:
  CallContext context_;
  std::vector<std::unique_ptr<grpc::ServerCompletionQueue>> queues_;
  std::vector<std::thread> threads_;
};

}  // namespace nsa::metadata::server
