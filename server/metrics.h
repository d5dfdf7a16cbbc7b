// Every metric of the service, made once and passed by reference. Names, labels and buckets stand in metrics.cc.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "grpcpp/support/status.h"
#include "kernels/backend.h"
#include "nsa/metadata/v1/metadata.pb.h"
#include "server/batch_queue.h"
#include "server/journey.h"
#include "server/sharded_metrics.h"

namespace nsa::metadata::server {

// Those of the two services, in the order of their protos. kOther: one that this server does not have.
enum class Method : uint8_t {
  kExpand,
  kExpandStream,
  kGetServerInfo,
  kServerLive,
  kServerReady,
  kModelReady,
  kServerMetadata,
  kModelMetadata,
  kModelInfer,
  kModelConfig,
  kModelStatistics,
  kOther
};
inline constexpr size_t kNumMethods = 12;

enum class Stage : uint8_t { kParse, kAdmit, kQueue, kPack, kDevice, kFrame, kSend };
inline constexpr size_t kNumStages = 7;

// The method's name; "other".
std::string_view MethodName(Method method);

// What is read again while the server serves.
enum class Reloaded : uint8_t { kCertificates, kPolicy };
inline constexpr size_t kNumReloaded = 2;

// Why a connection was ended by us.
enum class ConnectionEnd : uint8_t { kStalled, kUndelivered, kCrowded };
inline constexpr size_t kNumConnectionEnds = 3;

struct BatchSample {
  size_t requests;
  size_t sequences;
  size_t tokens;
  BatchClosed closed;
  kernels::Kernel kernel;  // what computed it
  uint64_t pack_ns;
  uint64_t device_ns;
};

// Thread-safe; nothing here blocks.
class Metrics {
 public:
  Metrics();

  // What /metrics shows of it.
  const prometheus::Collectable& collectable() const { return metrics_; }

  void CallStarted(Method method);
  void CallHandled(Method method, grpc::StatusCode code, uint64_t nanoseconds);
  // From a stream's item's arrival until its answer was sent.
  void ItemHandled(uint64_t nanoseconds);
  void Sent(uint64_t nanoseconds);
  void BatchDone(const BatchSample& batch);
  // A request was computed; its batch counts pack and device.
  void TaskDone(const Journey& journey);
  void Refused(v1::RefusalReason reason);
  // A request is in the queue: it is launched, expires or is cancelled there.
  void Admitted();
  // `stage` is kAdmit or kQueue: a request's deadline had passed there, and nothing was launched for it.
  void Expired(Stage stage);
  // kAdmit, kQueue: a request's caller had given up; kSend: its reply did not reach the caller.
  void Cancelled(Stage stage);
  void BackendFault(kernels::BackendKind backend, const absl::Status& why);
  void ConnectionRefused();
  void ConnectionsEnded(ConnectionEnd why, size_t count);
  // Whether the last reading of it failed, and the one before is in use.
  bool reload_failed(Reloaded what) const {
    return reload_failed_[static_cast<size_t>(what)].load(std::memory_order_relaxed);
  }
  // Files had changed: whether they were sound, and are in use.
  void Reload(Reloaded what, bool ok);

 private:
  using Counter = ShardedMetrics::Counter;
  using Histogram = ShardedMetrics::Histogram;
  static constexpr size_t kNumCodes = 17;
  struct CallMetrics {
    Counter started;
    std::array<Counter, kNumCodes> handled;
    Histogram seconds;
  };
  CallMetrics AddCall(Method method);
  void ObserveStage(Stage stage, uint64_t nanoseconds) {
    metrics_.Observe(stages_[static_cast<size_t>(stage)], nanoseconds);
  }

  ShardedMetrics metrics_;
  std::array<CallMetrics, kNumMethods> calls_;
  std::array<Histogram, kNumStages> stages_;
  Histogram items_;
  Histogram batch_requests_;
  Histogram batch_sequences_;
  Histogram batch_tokens_;
  std::array<Counter, kNumBatchClosed> batch_closed_;
  std::array<Counter, kernels::kNumKernels> launches_;
  std::map<v1::RefusalReason, Counter> refused_;
  Counter admitted_;
  std::array<Counter, kNumStages> expired_;
  std::array<Counter, kNumStages> cancelled_;
  std::map<std::pair<kernels::BackendKind, std::string_view>, Counter> faults_;
  Counter connections_refused_;
  std::array<Counter, kNumConnectionEnds> connections_ended_;
  std::array<std::atomic<bool>, kNumReloaded> reload_failed_ = {};
  std::array<std::array<Counter, 2>, kNumReloaded> reloads_;  // failed, ok
};

}  // namespace nsa::metadata::server
