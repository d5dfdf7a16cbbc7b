#include "server/health_service.h"

#include <chrono>
#include <optional>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/async_stream.h"
#include "grpcpp/support/async_unary_call.h"
#include "inference/inference.grpc.pb.h"
#include "nsa/metadata/v1/metadata.grpc.pb.h"
#include "server/check_call.h"
#include "server/completion_queue.h"

namespace nsa::metadata::server {

using grpc::health::v1::HealthCheckRequest;
using grpc::health::v1::HealthCheckResponse;

HealthCheckResponse::ServingStatus ServingStatusOf(const std::string& name, bool serving) {
  const bool known = name.empty() || name == v1::MetadataService::service_full_name() ||
                     name == inference::GRPCInferenceService::service_full_name();
  if (!known) return HealthCheckResponse::SERVICE_UNKNOWN;
  return serving ? HealthCheckResponse::SERVING : HealthCheckResponse::NOT_SERVING;
}

std::string NoSuchService(const std::string& name) { return absl::StrCat("no service '", name, "' here"); }

namespace {

// Checks that a queue waits for at once.
constexpr int kChecksWaiting = 4;

class Check {
 public:
  Check(HealthService& health, grpc::ServerCompletionQueue& queue)
      : place_(health.live()), health_(health), queue_(queue) {
    health_.service().RequestCheck(&context_, &request_, &writer_, &queue_, &queue_, Started(&arrived_tag_));
  }

 private:
  void OnArrived(bool ok) {
    if (!ok) {  // the server is shut down
      delete this;
      return;
    }
    place_.Begin();
    const std::optional<Refusal> refusal = health_.Arrived(context_, &request_);
    new Check(health_, queue_);
    HealthCheckResponse response;
    response.set_status(health_.StatusOf(request_.service()));
    if (refusal) {
      writer_.FinishWithError(ToStatus(*refusal), Started(&sent_tag_));
    } else if (response.status() == HealthCheckResponse::SERVICE_UNKNOWN) {
      const grpc::Status status(grpc::StatusCode::NOT_FOUND, NoSuchService(request_.service()));
      writer_.FinishWithError(status, Started(&sent_tag_));
    } else {
      writer_.Finish(response, grpc::Status::OK, Started(&sent_tag_));
    }
  }
  void OnSent(bool) { delete this; }

  LiveCalls::Place place_;
  HealthService& health_;
  grpc::ServerCompletionQueue& queue_;
  grpc::ServerContext context_;
  HealthCheckRequest request_;
  grpc::ServerAsyncResponseWriter<HealthCheckResponse> writer_{&context_};
  MemberTag<Check> arrived_tag_{this, &Check::OnArrived};
  MemberTag<Check> sent_tag_{this, &Check::OnSent};
};

}  // namespace

// Writes one status at a time, and between two of them only the last that was set. Deletes itself once no operation of
// gRPC's is under way.
class WatchCall {
 public:
  WatchCall(HealthService& health, grpc::ServerCompletionQueue& queue)
      : place_(health.live()), health_(health), queue_(queue) {
    context_.AsyncNotifyWhenDone(Started(&done_tag_));
    health_.service().RequestWatch(&context_, &request_, &writer_, &queue_, &queue_, Started(&arrived_tag_));
  }

  const std::string& name() const { return request_.service(); }
  // Any thread.
  void Tell(HealthService::ServingStatus status) {
    MutexLock lock(&mutex_);
    status_ = status;
    Pump();
  }
  void End() {
    constexpr std::chrono::milliseconds kMoment(200);
    MutexLock lock(&mutex_);
    ending_ = true;
    if (writing_ && Clock::now() - write_started_ > kMoment) context_.TryCancel();
    Pump();
  }

 private:
  void OnArrived(bool ok) {
    if (!ok) {  // the server is shut down; the done tag never comes
      delete this;
      return;
    }
    place_.Begin();
    const std::optional<Refusal> refusal = health_.Arrived(context_, &request_);
    new WatchCall(health_, queue_);
    if (refusal) {
      Refuse(ToStatus(*refusal));
    } else {
      health_.Add(this);
    }
    EndOperation();
  }
  void OnWritten(bool ok) {
    {
      MutexLock lock(&mutex_);
      writing_ = false;
      ending_ = ending_ || !ok;
      Pump();
    }
    EndOperation();
  }
  void OnDone(bool) {
    End();
    EndOperation();
  }
  void OnFinished(bool) { EndOperation(); }

  void Pump() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (writing_ || finishing_) return;
    if (status_ && status_ != told_) {
      writing_ = true;
      write_started_ = Clock::now();
      told_ = status_;
      ++operations_;
      HealthCheckResponse response;
      response.set_status(*status_);
      writer_.Write(response, Started(&written_tag_));
    } else if (ending_) {
      Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the server is shutting down"));
    }
  }
  void Refuse(const grpc::Status& status) {
    MutexLock lock(&mutex_);
    if (!finishing_) Finish(status);
  }
  void Finish(const grpc::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    finishing_ = true;
    ++operations_;
    writer_.Finish(status, Started(&finished_tag_));
  }
  void EndOperation() {
    {
      MutexLock lock(&mutex_);
      if (--operations_ > 0) return;
    }
    health_.Remove(this);
    delete this;
  }

  LiveCalls::Place place_;
  HealthService& health_;
  grpc::ServerCompletionQueue& queue_;
  grpc::ServerContext context_;
  HealthCheckRequest request_;
  grpc::ServerAsyncWriter<HealthCheckResponse> writer_{&context_};
  MemberTag<WatchCall> arrived_tag_{this, &WatchCall::OnArrived};
  MemberTag<WatchCall> written_tag_{this, &WatchCall::OnWritten};
  MemberTag<WatchCall> finished_tag_{this, &WatchCall::OnFinished};
  MemberTag<WatchCall> done_tag_{this, &WatchCall::OnDone};

  Mutex mutex_;
  std::optional<HealthService::ServingStatus> status_ ABSL_GUARDED_BY(mutex_);
  std::optional<HealthService::ServingStatus> told_ ABSL_GUARDED_BY(mutex_);
  int operations_ ABSL_GUARDED_BY(mutex_) = 2;  // the arrival, and the call itself until OnDone
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  TimePoint write_started_ ABSL_GUARDED_BY(mutex_);
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool finishing_ ABSL_GUARDED_BY(mutex_) = false;
};

void HealthService::AwaitCalls(grpc::ServerCompletionQueue& queue) {
  for (int i = 0; i < kChecksWaiting; ++i) new Check(*this, queue);
  new WatchCall(*this, queue);
}

std::optional<Refusal> HealthService::Arrived(const grpc::ServerContext& call, HealthCheckRequest* request) {
  const int64_t metadata_bytes = MetadataBytes(call);
  delivered_.Add(SlotOf(ParsePeer(call.peer())), request->ByteSizeLong() + MetadataWireBytes(call, metadata_bytes));
  constexpr size_t kMostNameBytes = 200;  // a watch keeps them for as long as it lasts
  HealthCheckRequest kept;
  kept.set_service(request->service().substr(0, kMostNameBytes));
  *request = std::move(kept);
  return CheckMetadata(metadata_bytes, max_metadata_bytes_);
}

void HealthService::SetServing(bool serving) {
  MutexLock lock(&mutex_);
  serving_ = serving;
  for (WatchCall* watch : watches_) watch->Tell(ServingStatusOf(watch->name(), serving_));
}

void HealthService::EndWatches() {
  MutexLock lock(&mutex_);
  ending_ = true;
  for (WatchCall* watch : watches_) watch->End();
}

HealthService::ServingStatus HealthService::StatusOf(const std::string& name) {
  MutexLock lock(&mutex_);
  return ServingStatusOf(name, serving_);
}

void HealthService::Add(WatchCall* watch) {
  MutexLock lock(&mutex_);
  watches_.insert(watch);
  watch->Tell(ServingStatusOf(watch->name(), serving_));
  if (ending_) watch->End();
}

void HealthService::Remove(WatchCall* watch) {
  MutexLock lock(&mutex_);
  watches_.erase(watch);
}

}  // namespace nsa::metadata::server
