// Why a request is not answered with an expansion, in the form that the wire, the status details and the metrics share.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"
#include "nsa/metadata/v1/metadata.pb.h"
#include "server/clock.h"
#include "server/journey.h"

namespace nsa::metadata::server {

// The ErrorInfo domain.
inline constexpr char kErrorDomain[] = "nsa.metadata.v1";

struct Refusal {
  grpc::StatusCode code = grpc::StatusCode::INTERNAL;
  v1::RefusalReason reason = v1::REFUSAL_REASON_INTERNAL;
  // For people; names field, value and limit.
  std::string message;
  // The field at fault, as "seq_lens[3]"; empty where no field is.
  std::string field;
  int64_t value = 0;
  int64_t limit = 0;
  // When to try again; 0: never, the same request fails again.
  std::chrono::milliseconds retry_after{0};
  // Where its time went, of a request that was given up in the queue.
  std::optional<Journey> journey = std::nullopt;
};

// The request itself is at fault: INVALID_ARGUMENT.
Refusal Invalid(v1::RefusalReason reason, std::string message, std::string field, int64_t value, int64_t limit);

// The server can't now: UNAVAILABLE, to be tried again after `retry_after`.
Refusal Later(v1::RefusalReason reason, std::string message, int64_t value, int64_t limit,
              std::chrono::milliseconds retry_after);

Refusal Draining();
// PERMISSION_DENIED.
Refusal NotAllowed(std::string message);
// The caller's deadline, or else max_rpc_duration. The request, which had `had` from its arrival on, has been there
// for `waited`.
Refusal DeadlinePassed(bool callers, Clock::duration had, Clock::duration waited);
Refusal Cancelled();
// A fault of ours; `message` names no internals.
Refusal InternalFault(std::string message);

// The status with google.rpc.ErrorInfo, BadRequest (where a field is at fault) and RetryInfo (where it may be tried
// again) as details.
grpc::Status ToStatus(const Refusal& refusal);
// What goes with it: when gRPC's own retries may try again.
void AddPushback(const Refusal& refusal, grpc::ServerContextBase& call);

// The same as a stream's item's answer.
v1::Refusal ToProto(const Refusal& refusal, uint64_t request_id);

// "queue_full" for REFUSAL_REASON_QUEUE_FULL: the metrics' label.
std::string ReasonLabel(v1::RefusalReason reason);

}  // namespace nsa::metadata::server
