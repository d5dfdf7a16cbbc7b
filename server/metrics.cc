#include "server/metrics.h"

#include <string_view>
#include <vector>

#include "inference/inference.grpc.pb.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"
#include "server/refusal.h"

namespace nsa::metadata::server {
namespace {

using Labels = ShardedMetrics::Labels;

constexpr double kNanosecond = 1e-9;
// Calls: 12.5 us and doublings of it. Stages: 0.5 us.
constexpr uint64_t kFirstCallBound = 12'500;
constexpr size_t kNumCallBounds = 20;
constexpr uint64_t kFirstStageBound = 500;
constexpr size_t kNumStageBounds = 24;

// go-grpc-prometheus's spelling of a status code.
std::string_view CodeName(size_t code) {
  constexpr std::array<std::string_view, 17> kNames = {
      "OK",       "Canceled",       "Unknown",          "InvalidArgument",   "DeadlineExceeded",
      "NotFound", "AlreadyExists",  "PermissionDenied", "ResourceExhausted", "FailedPrecondition",
      "Aborted",  "OutOfRange",     "Unimplemented",    "Internal",          "Unavailable",
      "DataLoss", "Unauthenticated"};
  return kNames[code];
}

constexpr std::array<const char*, kNumMethods> kMethodNames = {
    "Expand",         "ExpandStream",  "GetServerInfo", "ServerLive",  "ServerReady",     "ModelReady",
    "ServerMetadata", "ModelMetadata", "ModelInfer",    "ModelConfig", "ModelStatistics", "other"};

const char* ServiceName(Method method) {
  if (method == Method::kOther) return "other";
  return method < Method::kServerLive ? v1::MetadataService::service_full_name()
                                      : inference::GRPCInferenceService::service_full_name();
}

constexpr std::array<std::pair<const char*, const char*>, kNumReloaded> kReloads = {
    {{"nsa_metadata_tls_reloads_total", "Times that the certificates' files had changed, by whether they are in use."},
     {"nsa_metadata_policy_reloads_total", "Times that the policy's file had changed, by whether it is in use."}}};
constexpr std::array<const char*, kNumStages> kStageNames = {"parse",  "admit", "queue", "pack",
                                                             "device", "frame", "send"};
constexpr std::array<const char*, kNumConnectionEnds> kConnectionEnds = {"stalled", "undelivered", "crowded"};
constexpr std::array<const char*, kNumBatchClosed> kClosedNames = {"queue_empty",  "max_sequences", "max_tokens",
                                                                   "max_requests", "delay",         "deadline"};

constexpr std::string_view kTimeout = "timeout";
constexpr std::string_view kMemory = "memory";
constexpr std::string_view kDevice = "device";
constexpr std::array kFaultReasons = {kTimeout, kMemory, kDevice};

// Why a lane failed.
std::string_view FaultReason(const absl::Status& why) {
  if (absl::IsDeadlineExceeded(why)) return kTimeout;
  if (absl::IsResourceExhausted(why)) return kMemory;
  return kDevice;
}

}  // namespace

std::string_view MethodName(Method method) { return kMethodNames[static_cast<size_t>(method)]; }

Metrics::CallMetrics Metrics::AddCall(Method method) {
  const Labels labels = {{"grpc_type", method == Method::kExpandStream ? "bidi_stream" : "unary"},
                         {"grpc_service", ServiceName(method)},
                         {"grpc_method", kMethodNames[static_cast<size_t>(method)]}};
  CallMetrics call;
  call.started = metrics_.AddCounter("grpc_server_started_total", "Calls started on the server.", labels);
  for (size_t code = 0; code < kNumCodes; ++code) {
    Labels with_code = labels;
    with_code["grpc_code"] = CodeName(code);
    call.handled[code] = metrics_.AddCounter("grpc_server_handled_total",
                                             "Calls completed on the server, whatever their status.", with_code);
  }
  call.seconds =
      metrics_.AddHistogram("grpc_server_handling_seconds", "From a call's arrival until gRPC has sent its answer.",
                            labels, kFirstCallBound, kNumCallBounds, kNanosecond);
  return call;
}

Metrics::Metrics() {
  for (size_t i = 0; i < kNumMethods; ++i) calls_[i] = AddCall(static_cast<Method>(i));
  items_ =
      metrics_.AddHistogram("nsa_metadata_item_seconds", "From a stream's item's arrival until its answer was sent.",
                            {}, kFirstCallBound, kNumCallBounds, kNanosecond);
  for (size_t i = 0; i < kNumStages; ++i) {
    stages_[i] = metrics_.AddHistogram("nsa_metadata_stage_seconds", "Time of an expansion in one stage of the server.",
                                       {{"stage", kStageNames[i]}}, kFirstStageBound, kNumStageBounds, kNanosecond);
  }
  batch_requests_ = metrics_.AddHistogram("nsa_metadata_batch_requests", "Requests a batch.", {}, 1, 13, 1);
  batch_sequences_ = metrics_.AddHistogram("nsa_metadata_batch_sequences", "Sequences a batch.", {}, 1, 17, 1);
  batch_tokens_ = metrics_.AddHistogram("nsa_metadata_batch_tokens", "Tokens a batch.", {}, 1, 23, 1);
  for (size_t i = 0; i < kNumBatchClosed; ++i) {
    batch_closed_[i] = metrics_.AddCounter("nsa_metadata_batch_closed_total", "Batches, by why they held no more.",
                                           {{"reason", kClosedNames[i]}});
  }
  for (size_t i = 0; i < kernels::kNumKernels; ++i) {
    launches_[i] = metrics_.AddCounter("nsa_metadata_kernel_launches_total", "Batches computed, by what computed them.",
                                       {{"kernel", std::string(kernels::KernelName(static_cast<kernels::Kernel>(i)))}});
  }
  for (int reason = v1::REFUSAL_REASON_UNSPECIFIED + 1; reason <= v1::RefusalReason_MAX; ++reason) {
    if (!v1::RefusalReason_IsValid(reason)) continue;
    const auto known = static_cast<v1::RefusalReason>(reason);
    refused_[known] = metrics_.AddCounter("nsa_metadata_refused_total", "Requests refused, by reason.",
                                          {{"reason", ReasonLabel(known)}});
  }
  admitted_ = metrics_.AddCounter("nsa_metadata_admitted_total", "Requests that came into the queue.", {});
  for (Stage stage : {Stage::kAdmit, Stage::kQueue}) {
    expired_[static_cast<size_t>(stage)] =
        metrics_.AddCounter("nsa_metadata_expired_total", "Requests whose deadline passed before they were launched.",
                            {{"stage", kStageNames[static_cast<size_t>(stage)]}});
  }
  for (Stage stage : {Stage::kAdmit, Stage::kQueue, Stage::kSend}) {
    cancelled_[static_cast<size_t>(stage)] =
        metrics_.AddCounter("nsa_metadata_cancelled_total", "Requests whose caller gave up, by how far they had come.",
                            {{"stage", kStageNames[static_cast<size_t>(stage)]}});
  }
  for (std::string_view reason : kFaultReasons) {
    const kernels::BackendKind cuda = kernels::BackendKind::kCuda;  // the host's can't fail
    faults_[{cuda, reason}] = metrics_.AddCounter(
        "nsa_metadata_backend_faults_total", "Batches that a device failed at; the CPU computed them.",
        {{"backend", std::string(kernels::BackendName(cuda))}, {"reason", std::string(reason)}});
  }
  connections_refused_ = metrics_.AddCounter("nsa_metadata_connections_refused_total",
                                             "Connections closed on arrival: too many, or no descriptor left.", {});
  for (size_t why = 0; why < kNumConnectionEnds; ++why) {
    connections_ended_[why] = metrics_.AddCounter(
        "nsa_metadata_connections_ended_total",
        "Connections ended by a reset, by reason: 'stalled', the peer took next to nothing of what was written for "
        "write_stall_timeout; 'undelivered', it had sent the most that was no request, of max_undelivered_bytes; "
        "'crowded', it was the oldest of too many on the health port.",
        {{"reason", kConnectionEnds[why]}});
  }
  for (size_t what = 0; what < kNumReloaded; ++what) {
    for (const bool ok : {false, true}) {
      reloads_[what][ok] =
          metrics_.AddCounter(kReloads[what].first, kReloads[what].second, {{"result", ok ? "ok" : "error"}});
    }
  }
  metrics_.Seal();
}

void Metrics::CallStarted(Method method) { metrics_.Increment(calls_[static_cast<size_t>(method)].started); }

void Metrics::CallHandled(Method method, grpc::StatusCode code, uint64_t nanoseconds) {
  const CallMetrics& call = calls_[static_cast<size_t>(method)];
  metrics_.Increment(call.handled[static_cast<size_t>(code) < kNumCodes ? code : grpc::StatusCode::UNKNOWN]);
  metrics_.Observe(call.seconds, nanoseconds);
}

void Metrics::ItemHandled(uint64_t nanoseconds) { metrics_.Observe(items_, nanoseconds); }

void Metrics::Sent(uint64_t nanoseconds) { ObserveStage(Stage::kSend, nanoseconds); }

void Metrics::BatchDone(const BatchSample& batch) {
  metrics_.Observe(batch_requests_, batch.requests);
  metrics_.Observe(batch_sequences_, batch.sequences);
  metrics_.Observe(batch_tokens_, batch.tokens);
  metrics_.Increment(batch_closed_[static_cast<size_t>(batch.closed)]);
  metrics_.Increment(launches_[static_cast<size_t>(batch.kernel)]);
  ObserveStage(Stage::kPack, batch.pack_ns);
  ObserveStage(Stage::kDevice, batch.device_ns);
}

void Metrics::TaskDone(const Journey& journey) {
  ObserveStage(Stage::kParse, journey.parse_ns);
  ObserveStage(Stage::kAdmit, journey.admit_ns);
  ObserveStage(Stage::kQueue, journey.queue_ns);
  ObserveStage(Stage::kFrame, journey.frame_ns);
}

void Metrics::Refused(v1::RefusalReason reason) { metrics_.Increment(refused_.at(reason)); }
void Metrics::Admitted() { metrics_.Increment(admitted_); }
void Metrics::Expired(Stage stage) { metrics_.Increment(expired_[static_cast<size_t>(stage)]); }
void Metrics::Cancelled(Stage stage) { metrics_.Increment(cancelled_[static_cast<size_t>(stage)]); }
void Metrics::BackendFault(kernels::BackendKind backend, const absl::Status& why) {
  if (const auto fault = faults_.find({backend, FaultReason(why)}); fault != faults_.end()) {
    metrics_.Increment(fault->second);
  }
}
void Metrics::ConnectionRefused() { metrics_.Increment(connections_refused_); }
void Metrics::Reload(Reloaded what, bool ok) {
  metrics_.Increment(reloads_[static_cast<size_t>(what)][ok]);
  reload_failed_[static_cast<size_t>(what)].store(!ok, std::memory_order_relaxed);
}
void Metrics::ConnectionsEnded(ConnectionEnd why, size_t count) {
  for (; count > 0; --count) metrics_.Increment(connections_ended_[static_cast<size_t>(why)]);
}

}  // namespace nsa::metadata::server
