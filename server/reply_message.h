// A message to send, given to gRPC without a copy.
#pragma once

#include <utility>

#include "grpcpp/impl/codegen/serialization_traits.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"

namespace nsa::metadata::server {

// Empty once it was sent: gRPC takes the slices, where of a grpc::ByteBuffer it would make a copy of the list of them.
struct ReplyMessage {
  explicit ReplyMessage(grpc::ByteBuffer message) : bytes(std::move(message)) {}
  mutable grpc::ByteBuffer bytes;
};

}  // namespace nsa::metadata::server

template <>
class grpc::SerializationTraits<nsa::metadata::server::ReplyMessage> {
 public:
  static Status Serialize(const nsa::metadata::server::ReplyMessage& message, ByteBuffer* buffer, bool* own_buffer) {
    buffer->Swap(&message.bytes);
    *own_buffer = true;
    return Status::OK;
  }
};
