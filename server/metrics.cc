#include "server/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <string_view>
#include <vector>

#include "nsa/metadata/v1/metadata.grpc.pb.h"
#include "server/refusal.h"

namespace nsa::metadata::server {
namespace {

using Labels = std::map<std::string, std::string>;

// `count` bounds, each twice the one before.
prometheus::Histogram::BucketBoundaries Doubling(double first, int count) {
  prometheus::Histogram::BucketBoundaries bounds;
  for (int n = 0; n < count; ++n, first *= 2) bounds.push_back(first);
  return bounds;
}

const prometheus::Histogram::BucketBoundaries& CallBuckets() {
  static const auto* bounds = new prometheus::Histogram::BucketBoundaries(Doubling(12.5e-6, 20));
  return *bounds;
}

const prometheus::Histogram::BucketBoundaries& StageBuckets() {
  static const auto* bounds = new prometheus::Histogram::BucketBoundaries(Doubling(0.5e-6, 24));
  return *bounds;
}

prometheus::Counter* Counter(prometheus::Registry& registry, const char* name, const char* help,
                             const Labels& labels = {}) {
  return &prometheus::BuildCounter().Name(name).Help(help).Register(registry).Add(labels);
}

prometheus::Histogram* Histogram(prometheus::Registry& registry, const char* name, const char* help,
                                 const Labels& labels, const prometheus::Histogram::BucketBoundaries& bounds) {
  return &prometheus::BuildHistogram().Name(name).Help(help).Register(registry).Add(labels, bounds);
}

// go-grpc-prometheus's spelling of a status code.
std::string_view CodeName(size_t code) {
  constexpr std::array<std::string_view, 17> kNames = {
      "OK",       "Canceled",       "Unknown",          "InvalidArgument",   "DeadlineExceeded",
      "NotFound", "AlreadyExists",  "PermissionDenied", "ResourceExhausted", "FailedPrecondition",
      "Aborted",  "OutOfRange",     "Unimplemented",    "Internal",          "Unavailable",
      "DataLoss", "Unauthenticated"};
  return kNames[code];
}

constexpr std::array<const char*, kNumMethods> kMethodNames = {"Expand", "ExpandStream", "GetServerInfo", "other"};
constexpr std::array<const char*, kNumStages> kStageNames = {"parse",  "admit", "queue", "pack",
                                                             "device", "frame", "send"};
constexpr std::array<const char*, kNumBatchClosed> kClosedNames = {"queue_empty", "max_sequences", "max_tokens",
                                                                   "max_requests"};

}  // namespace

Metrics::CallMetrics Metrics::MakeCall(prometheus::Registry& registry, Method method) {
  const bool other = method == Method::kOther;
  const Labels labels = {{"grpc_type", method == Method::kExpandStream ? "bidi_stream" : "unary"},
                         {"grpc_service", other ? "other" : v1::MetadataService::service_full_name()},
                         {"grpc_method", kMethodNames[static_cast<size_t>(method)]}};
  CallMetrics call;
  call.started = Counter(registry, "grpc_server_started_total", "Calls started on the server.", labels);
  for (size_t code = 0; code < kNumCodes; ++code) {
    Labels with_code = labels;
    with_code["grpc_code"] = CodeName(code);
    call.handled[code] = Counter(registry, "grpc_server_handled_total",
                                 "Calls completed on the server, whatever their status.", with_code);
  }
  call.seconds = Histogram(registry, "grpc_server_handling_seconds",
                           "From a call's arrival until gRPC has sent its answer.", labels, CallBuckets());
  return call;
}

Metrics::Metrics(prometheus::Registry& registry) {
  for (size_t i = 0; i < kNumMethods; ++i) calls_[i] = MakeCall(registry, static_cast<Method>(i));
  items_ = Histogram(registry, "nsa_metadata_item_seconds", "From a stream's item's arrival until its answer was sent.",
                     {}, CallBuckets());
  for (size_t i = 0; i < kNumStages; ++i) {
    stages_[i] = Histogram(registry, "nsa_metadata_stage_seconds", "Time of an expansion in one stage of the server.",
                           {{"stage", kStageNames[i]}}, StageBuckets());
  }
  batch_requests_ = Histogram(registry, "nsa_metadata_batch_requests", "Requests a batch.", {}, Doubling(1, 13));
  batch_sequences_ = Histogram(registry, "nsa_metadata_batch_sequences", "Sequences a batch.", {}, Doubling(1, 17));
  batch_tokens_ = Histogram(registry, "nsa_metadata_batch_tokens", "Tokens a batch.", {}, Doubling(1, 23));
  for (size_t i = 0; i < kNumBatchClosed; ++i) {
    batch_closed_[i] = Counter(registry, "nsa_metadata_batch_closed_total", "Batches, by why they held no more.",
                               {{"reason", kClosedNames[i]}});
  }
  for (size_t i = 0; i < kernels::kNumKernels; ++i) {
    launches_[i] = Counter(registry, "nsa_metadata_kernel_launches_total", "Batches computed, by what computed them.",
                           {{"kernel", std::string(kernels::KernelName(static_cast<kernels::Kernel>(i)))}});
  }
  for (int reason = v1::REFUSAL_REASON_UNSPECIFIED + 1; reason <= v1::RefusalReason_MAX; ++reason) {
    if (!v1::RefusalReason_IsValid(reason)) continue;
    const auto known = static_cast<v1::RefusalReason>(reason);
    refused_[known] = Counter(registry, "nsa_metadata_refused_total", "Requests refused, by reason.",
                              {{"reason", ReasonLabel(known)}});
  }
  expired_ =
      Counter(registry, "nsa_metadata_expired_total", "Requests whose deadline passed before they were launched.");
  cancelled_before_launch_ = Counter(registry, "nsa_metadata_cancelled_total",
                                     "Requests whose caller gave up, by how far they had come.", {{"stage", "queue"}});
  cancelled_after_launch_ = Counter(registry, "nsa_metadata_cancelled_total",
                                    "Requests whose caller gave up, by how far they had come.", {{"stage", "send"}});
  connections_refused_ = Counter(registry, "nsa_metadata_connections_refused_total",
                                 "Connections closed on arrival: too many, or no descriptor left.");
}

Metrics::~Metrics() = default;

void Metrics::CallStarted(Method method) { calls_[static_cast<size_t>(method)].started->Increment(); }

void Metrics::CallHandled(Method method, grpc::StatusCode code, uint64_t nanoseconds) {
  CallMetrics& call = calls_[static_cast<size_t>(method)];
  call.handled[static_cast<size_t>(code) < kNumCodes ? code : grpc::StatusCode::UNKNOWN]->Increment();
  call.seconds->Observe(static_cast<double>(nanoseconds) * 1e-9);
}

void Metrics::ObserveStage(Stage stage, uint64_t nanoseconds) {
  stages_[static_cast<size_t>(stage)]->Observe(static_cast<double>(nanoseconds) * 1e-9);
}

void Metrics::ItemHandled(uint64_t nanoseconds) { items_->Observe(static_cast<double>(nanoseconds) * 1e-9); }

void Metrics::Sent(uint64_t nanoseconds) { ObserveStage(Stage::kSend, nanoseconds); }

void Metrics::BatchDone(const BatchSample& batch) {
  batch_requests_->Observe(static_cast<double>(batch.requests));
  batch_sequences_->Observe(static_cast<double>(batch.sequences));
  batch_tokens_->Observe(static_cast<double>(batch.tokens));
  batch_closed_[static_cast<size_t>(batch.closed)]->Increment();
  if (batch.kernel) launches_[static_cast<size_t>(*batch.kernel)]->Increment();
  ObserveStage(Stage::kPack, batch.pack_ns);
  ObserveStage(Stage::kDevice, batch.device_ns);
}

void Metrics::TaskDone(const TaskSample& task) {
  ObserveStage(Stage::kParse, task.parse_ns);
  ObserveStage(Stage::kAdmit, task.admit_ns);
  ObserveStage(Stage::kQueue, task.queue_ns);
  ObserveStage(Stage::kFrame, task.frame_ns);
}

void Metrics::Refused(v1::RefusalReason reason) { refused_.at(reason)->Increment(); }
void Metrics::Expired() { expired_->Increment(); }
void Metrics::CancelledBeforeLaunch() { cancelled_before_launch_->Increment(); }
void Metrics::CancelledAfterLaunch() { cancelled_after_launch_->Increment(); }
void Metrics::ConnectionRefused() { connections_refused_->Increment(); }

}  // namespace nsa::metadata::server
