#include "server/check_call.h"

#include "absl/strings/str_cat.h"

namespace nsa::metadata::server {
namespace {

std::optional<Refusal> CheckMetadata(int64_t bytes, int64_t max_bytes) {
  if (bytes <= max_bytes) return std::nullopt;
  return Invalid(v1::REFUSAL_REASON_METADATA_TOO_LARGE,
                 absl::StrCat("the call's metadata take ", bytes, " bytes, more than max_metadata_bytes ", max_bytes),
                 "metadata", bytes, max_bytes);
}

}  // namespace

int64_t MetadataBytes(const grpc::ServerContextBase& call) {
  constexpr size_t kPerEntry = 32;
  int64_t bytes = 0;
  for (const auto& [key, value] : call.client_metadata()) bytes += key.size() + value.size() + kPerEntry;
  return bytes;
}

std::optional<Refusal> CheckCall(const grpc::ServerContextBase& call, Method method, int64_t metadata_bytes,
                                 const CallContext& context) {
  if (std::optional<Refusal> refusal = context.trust.Check(call, method)) return refusal;
  return CheckMetadata(metadata_bytes, context.options.connection.max_metadata_bytes);
}

}  // namespace nsa::metadata::server
