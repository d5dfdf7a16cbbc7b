// Calls of methods that this server does not have.
#pragma once

#include "grpcpp/generic/async_generic_service.h"
#include "server/call_queue.h"
#include "server/clock.h"
#include "server/completion_queue.h"
#include "server/service.h"

namespace nsa::metadata::server {

// Answers UNIMPLEMENTED as gRPC itself would, and counts it, which gRPC does not. Deletes itself when the answer is
// sent.
class OtherCall {
 public:
  // Begins to take such calls from `queue`, one at a time.
  static void Await(CallContext& context, CallQueue& queue) { new OtherCall(context, queue); }

 private:
  OtherCall(CallContext& context, CallQueue& queue);
  ~OtherCall() = default;

  void OnArrived(bool ok);
  void OnSent(bool ok);

  LiveCalls::Place place_;
  CallContext& context_;
  CallQueue& queue_;
  grpc::GenericServerContext server_context_;
  grpc::GenericServerAsyncReaderWriter stream_{&server_context_};
  MemberTag<OtherCall> arrived_tag_{this, &OtherCall::OnArrived};
  MemberTag<OtherCall> sent_tag_{this, &OtherCall::OnSent};
  TimePoint arrived_;
};

}  // namespace nsa::metadata::server
