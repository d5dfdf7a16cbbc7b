// A message to send, given to gRPC without a copy.
#pragma once

#include <cstddef>

#include "grpcpp/impl/codegen/serialization_traits.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/status.h"

namespace nsa::metadata::server {

// Movable, where a grpc::ByteBuffer can only be copied. Empty once it was sent: gRPC takes its slices.
struct ReplyMessage {
  ReplyMessage(const grpc::Slice* slices, size_t count) : bytes(slices, count) {}
  ReplyMessage(ReplyMessage&& other) noexcept { bytes.Swap(&other.bytes); }
  ReplyMessage& operator=(ReplyMessage&& other) noexcept {
    bytes.Swap(&other.bytes);
    return *this;
  }

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
