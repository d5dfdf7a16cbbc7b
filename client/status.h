// A call's outcome: gRPC's status as abseil's, and what a refusal says.
#pragma once

#include <grpcpp/support/status.h>

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "nsa/metadata/v1/metadata.pb.h"

namespace nsa::metadata::client {

// Why the service refused a request: the first violation it found.
struct Violation {
  // UNSPECIFIED where the server is newer than this client; `reason_name` says it still.
  v1::RefusalReason reason = v1::REFUSAL_REASON_UNSPECIFIED;
  // The RefusalReason's name without its prefix, as "LENGTHS_DIFFER".
  std::string reason_name;
  // The field at fault, as "seq_lens[3]"; empty where no field is.
  std::string field;
  // The value refused and the limit it passed; 0 where there is none.
  int64_t value = 0;
  int64_t limit = 0;
  // When to try again; nothing where the same request will be refused again.
  std::optional<absl::Duration> retry_after;
};

// The same code and message. The details of google.rpc become payloads under their type URLs, as
// "type.googleapis.com/google.rpc.ErrorInfo".
absl::Status ToAbslStatus(const grpc::Status& status);

// What a unary call would have been refused with.
absl::Status ToAbslStatus(const v1::Refusal& refusal);

// The refusal in a status of Client's or ExpandStream's. Nothing if the service did not send one: the call is OK, or
// failed on its way.
std::optional<Violation> ViolationOf(const absl::Status& status);

}  // namespace nsa::metadata::client
