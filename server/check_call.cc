#include "server/check_call.h"

#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "grpcpp/support/proto_buffer_reader.h"

namespace nsa::metadata::server {
namespace {

// Of gRPC's readers the one that tells how the bytes are to be read.
class Reader : public grpc::ProtoBufferReader {
 public:
  using grpc::ProtoBufferReader::ProtoBufferReader;
  bool compressed() { return status().ok() && reader()->buffer_in->data.raw.compression != GRPC_COMPRESS_NONE; }
};

bool IsCompressed(const grpc::ByteBuffer& message) {
  if (grpc::Slice slice; message.TrySingleSlice(&slice).ok()) return false;
  grpc::ByteBuffer same = message;  // of which only the slices' references are copied
  return Reader(&same).compressed();
}

}  // namespace

int64_t MetadataBytes(const grpc::ServerContextBase& call) {
  constexpr size_t kPerEntry = 32;
  int64_t bytes = 0;
  for (const auto& [key, value] : call.client_metadata()) bytes += key.size() + value.size() + kPerEntry;
  return bytes;
}

size_t MetadataWireBytes(const grpc::ServerContextBase& call, int64_t metadata_bytes) {
  constexpr int64_t kFew = 1'024;
  constexpr size_t kPerEntry = 8;  // its kind, and two lengths
  if (metadata_bytes <= kFew) return static_cast<size_t>(metadata_bytes);
  std::set<std::pair<absl::string_view, absl::string_view>> fields;
  size_t bytes = 0;
  for (const auto& [key, value] : call.client_metadata()) {
    const bool is_new =
        fields.emplace(absl::string_view(key.data(), key.size()), absl::string_view(value.data(), value.size())).second;
    bytes += is_new ? key.size() + value.size() + kPerEntry : 1;
  }
  return bytes;
}

std::optional<Refusal> CheckMetadata(int64_t bytes, int64_t max_bytes) {
  if (bytes <= max_bytes) return std::nullopt;
  return Invalid(v1::REFUSAL_REASON_METADATA_TOO_LARGE,
                 absl::StrCat("the call's metadata take ", bytes, " bytes, more than max_metadata_bytes ", max_bytes),
                 "metadata", bytes, max_bytes);
}

std::optional<Refusal> CheckCall(const grpc::ServerContextBase& call, Method method, const Caller& caller,
                                 int64_t metadata_bytes, const CallContext& context) {
  if (caller.slot == kNoSlot && context.refuses_unix.load(std::memory_order_relaxed)) return Draining();
  if (std::optional<Refusal> refusal = context.trust.Check(call, method)) return refusal;
  return CheckMetadata(metadata_bytes, context.options.connection.max_metadata_bytes);
}

std::optional<Refusal> CheckMessage(const grpc::ByteBuffer& message, const CallContext& context) {
  const auto bytes = static_cast<int64_t>(message.Length());
  const int64_t max_bytes = context.options.connection.max_receive_message;
  if (bytes > max_bytes) {
    return Refusal{
        .code = grpc::StatusCode::RESOURCE_EXHAUSTED,
        .reason = v1::REFUSAL_REASON_MESSAGE_TOO_LARGE,
        .message = absl::StrCat("the message takes ", bytes, " bytes, more than max_receive_message ", max_bytes),
        .field = "",
        .value = bytes,
        .limit = max_bytes};
  }
  if (IsCompressed(message)) {
    return Refusal{.code = grpc::StatusCode::UNIMPLEMENTED,
                   .reason = v1::REFUSAL_REASON_COMPRESSED,
                   .message = "the message is compressed; this server takes none that is",
                   .field = "",
                   .value = bytes};
  }
  return std::nullopt;
}

}  // namespace nsa::metadata::server
