// A place whose requests are unary calls.
#include <grpcpp/client_context.h>

#include <optional>

#include "client/load_loop.h"
#include "client/mutex.h"
#include "client/status.h"

namespace nsa::metadata::client {
namespace {

class CallSlot final : public LoadSlot {
 public:
  CallSlot(LoadLoop& loop, const std::shared_ptr<grpc::Channel>& channel, const grpc::ByteBuffer& request)
      : loop_(loop), stub_(channel), request_(request) {}

 private:
  void Start() override {
    MutexLock lock(&starting_);
    reader_.reset();  // it lies in the memory of the call that the context holds
    context_.emplace();
    context_->set_deadline(std::chrono::system_clock::now() + loop_.schedule().timeout);
    reader_ = stub_.PrepareUnaryCall(&*context_, kMethod, request_, &loop_.queue());
    reader_->StartCall();
    reader_->Finish(&reply_, &status_, &ended_);
  }

  void OnEnded() {
    const LoadClock::time_point when = LoadClock::now();
    // Another thread may have started it, and may still be on its way out of Start.
    { MutexLock lock(&starting_); }
    Outcome outcome;
    if (status_.ok()) {
      outcome = loop_.check().Unary(reply_, kFirstBenchId);
    } else {
      outcome.status = ToAbslStatus(status_);
    }
    reply_.Clear();
    loop_.Ended(*this, when, outcome);
  }

  const std::string kMethod = "/nsa.metadata.v1.MetadataService/Expand";
  LoadLoop& loop_;
  grpc::GenericStub stub_;
  const grpc::ByteBuffer request_;
  Mutex starting_;
  std::optional<grpc::ClientContext> context_;
  std::unique_ptr<grpc::GenericClientAsyncResponseReader> reader_;
  grpc::ByteBuffer reply_;
  grpc::Status status_;
  LoadTag ended_{[this](bool) { OnEnded(); }};
};

}  // namespace

void LoadLoop::AddCalls(const std::shared_ptr<grpc::Channel>& channel, int64_t in_flight) {
  const grpc::Slice slice(ToProto(request_.WithId(kFirstBenchId)).SerializeAsString());
  const grpc::ByteBuffer request(&slice, 1);
  for (int64_t i = 0; i < in_flight; ++i) slots_.push_back(std::make_unique<CallSlot>(*this, channel, request));
}

}  // namespace nsa::metadata::client
