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

#include "grpcpp/support/status.h"
#include "kernels/backend.h"
#include "nsa/metadata/v1/metadata.pb.h"
#include "server/batch_queue.h"

namespace prometheus {
class Counter;
class Histogram;
class Registry;
}  // namespace prometheus

namespace nsa::metadata::server {

// kOther: one that this server does not have.
enum class Method : uint8_t { kExpand, kExpandStream, kGetServerInfo, kOther };
inline constexpr size_t kNumMethods = 4;

enum class Stage : uint8_t { kParse, kAdmit, kQueue, kPack, kDevice, kFrame, kSend };
inline constexpr size_t kNumStages = 7;

struct BatchSample {
  size_t requests;
  size_t sequences;
  size_t tokens;
  BatchClosed closed;
  // What computed it; nothing when it failed.
  std::optional<kernels::Kernel> kernel;
  uint64_t pack_ns;
  uint64_t device_ns;
};

struct TaskSample {
  uint64_t parse_ns;
  uint64_t admit_ns;
  uint64_t queue_ns;
  uint64_t frame_ns;
};

// Thread-safe; nothing here blocks for long. `registry` outlives it.
class Metrics {
 public:
  explicit Metrics(prometheus::Registry& registry);
  ~Metrics();

  void CallStarted(Method method);
  void CallHandled(Method method, grpc::StatusCode code, uint64_t nanoseconds);
  // From a stream's item's arrival until its answer was sent.
  void ItemHandled(uint64_t nanoseconds);
  void Sent(uint64_t nanoseconds);
  void BatchDone(const BatchSample& batch);
  void TaskDone(const TaskSample& task);
  void Refused(v1::RefusalReason reason);
  // A request left the queue because its deadline had passed.
  void Expired();
  void CancelledBeforeLaunch();
  // A call's caller gave up after its request was launched.
  void CancelledAfterLaunch();
  void ConnectionRefused();

 private:
  static constexpr size_t kNumCodes = 17;
  struct CallMetrics {
    prometheus::Counter* started;
    std::array<prometheus::Counter*, kNumCodes> handled;
    prometheus::Histogram* seconds;
  };
  static CallMetrics MakeCall(prometheus::Registry& registry, Method method);
  void ObserveStage(Stage stage, uint64_t nanoseconds);

  std::array<CallMetrics, kNumMethods> calls_;
  std::array<prometheus::Histogram*, kNumStages> stages_;
  prometheus::Histogram* items_;
  prometheus::Histogram* batch_requests_;
  prometheus::Histogram* batch_sequences_;
  prometheus::Histogram* batch_tokens_;
  std::array<prometheus::Counter*, kNumBatchClosed> batch_closed_;
  std::array<prometheus::Counter*, kernels::kNumKernels> launches_;
  std::map<v1::RefusalReason, prometheus::Counter*> refused_;
  prometheus::Counter* expired_;
  prometheus::Counter* cancelled_before_launch_;
  prometheus::Counter* cancelled_after_launch_;
  prometheus::Counter* connections_refused_;
};

}  // namespace nsa::metadata::server
