// What is checked of a call before its message is read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>

#include "grpcpp/server_context.h"
#include "grpcpp/support/byte_buffer.h"
#include "server/metrics.h"
#include "server/refusal.h"
#include "server/service.h"

namespace nsa::metadata::server {

// What a call's metadata take, as HTTP/2 counts a header list.
int64_t MetadataBytes(const grpc::ServerContextBase& call);

// What they may have cost on the wire: of more than a KiB each field counts once, since a caller names again by a byte
// what HPACK keeps, 4 KiB of a connection's.
size_t MetadataWireBytes(const grpc::ServerContextBase& call, int64_t metadata_bytes);

// Refuses metadata of more than max_bytes.
std::optional<Refusal> CheckMetadata(int64_t bytes, int64_t max_bytes);

// Refuses what comes on a Unix socket at the end, what the authorization policy does not allow, and metadata of more
// than max_metadata_bytes: gRPC's own limit lets some of them pass.
std::optional<Refusal> CheckCall(const grpc::ServerContextBase& call, Method method, const Caller& caller,
                                 int64_t metadata_bytes, const CallContext& context);

// Refuses a message of more than max_receive_message bytes, and a compressed one.
std::optional<Refusal> CheckMessage(const grpc::ByteBuffer& message, const CallContext& context);

}  // namespace nsa::metadata::server
