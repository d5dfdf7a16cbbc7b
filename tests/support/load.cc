#include "tests/support/load.h"

#include <utility>

namespace nsa::metadata::testing {
namespace {

using std::chrono::steady_clock;

constexpr size_t kInFlight = 64;

}  // namespace

struct Load::Pending {
  const Kind* kind;
  grpc::ClientContext context;
  steady_clock::time_point deadline;
  v1::ExpandResponse response;
  grpc::Status status;
  std::unique_ptr<grpc::ClientAsyncResponseReader<v1::ExpandResponse>> reader;
};

Load::Load(std::unique_ptr<Stub> stub, const std::vector<TestRequest>& requests) {
  for (const TestRequest& request : requests) kinds_.push_back({ToProto(request), ReferenceArrays(request)});
  Use(std::move(stub));
}

Load::~Load() = default;

void Load::Use(std::unique_ptr<Stub> stub) {
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  context.set_wait_for_ready(true);
  ++codes.at(stub->GetServerInfo(&context, {}, &info).error_code());
  --codes[grpc::StatusCode::OK];  // the one that is expected
  stub_ = std::move(stub);
}

void Load::Run(int64_t calls, const std::function<Treatment(std::mt19937_64&)>& draw,
               const std::function<void(int64_t)>& ended) {
  std::mt19937_64 random(11);
  int64_t started = 0;
  size_t in_flight = 0;
  while (started < calls || in_flight > 0) {
    while (started < calls && in_flight < kInFlight) {
      Start(kinds_[static_cast<size_t>(started++) % kinds_.size()], draw(random));
      ++in_flight;
    }
    void* tag = nullptr;
    bool ok = false;
    queue_.Next(&tag, &ok);
    End(static_cast<Pending*>(tag));
    --in_flight;
    // Whoever is to be cancelled is so in the midst of the others' ends.
    if (!to_cancel_.empty() && random() % 2 == 0) {
      (*to_cancel_.begin())->context.TryCancel();
      to_cancel_.erase(to_cancel_.begin());
    }
    if (in_flight == to_cancel_.size()) CancelAll();
    ended(started - static_cast<int64_t>(in_flight));
  }
}

void Load::Start(const Kind& kind, const Treatment& treatment) {
  auto* call = new Pending{.kind = &kind, .context = {}, .deadline = {}, .response = {}, .status = {}, .reader = {}};
  const auto deadline = std::chrono::duration_cast<std::chrono::microseconds>(treatment.deadline);
  call->deadline = steady_clock::now() + deadline;
  call->context.set_deadline(std::chrono::system_clock::now() + deadline);
  call->reader = stub_->AsyncExpand(&call->context, kind.request, &queue_);
  call->reader->Finish(&call->response, &call->status, call);
  if (treatment.cancel) to_cancel_.insert(call);
}

void Load::End(Pending* call) {
  to_cancel_.erase(call);
  ++codes.at(call->status.error_code());
  if (call->status.ok()) {
    wrong += ToArrays(call->response) != call->kind->answer;
  } else if (call->status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    late_us.push_back(std::chrono::duration<double, std::micro>(steady_clock::now() - call->deadline).count());
  }
  delete call;
}

void Load::CancelAll() {
  for (Pending* call : to_cancel_) call->context.TryCancel();
  to_cancel_.clear();
}

}  // namespace nsa::metadata::testing
