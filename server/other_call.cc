#include "server/other_call.h"

#include "server/check_call.h"

namespace nsa::metadata::server {

OtherCall::OtherCall(CallContext& context, CallQueue& queue) : place_(context.live), context_(context), queue_(queue) {
  context_.other_methods.RequestCall(&server_context_, &stream_, queue_.get(), queue_.get(), Started(&arrived_tag_));
}

void OtherCall::OnArrived(bool ok) {
  if (!ok) {  // the server is shut down
    delete this;
    return;
  }
  arrived_ = Clock::now();
  place_.Begin();
  context_.metrics.CallStarted(Method::kOther);
  context_.delivered.Add(context_.callers.CallerOf(server_context_).slot,
                         MetadataWireBytes(server_context_, MetadataBytes(server_context_)));
  Await(context_, queue_);
  stream_.Finish(grpc::Status(grpc::StatusCode::UNIMPLEMENTED, "this server has no such method"), Started(&sent_tag_));
}

void OtherCall::OnSent(bool) {
  context_.metrics.CallHandled(Method::kOther, grpc::StatusCode::UNIMPLEMENTED, Nanoseconds(arrived_, Clock::now()));
  delete this;
}

}  // namespace nsa::metadata::server
