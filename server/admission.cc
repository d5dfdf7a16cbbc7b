#include "server/admission.h"

#include <chrono>

#include "absl/strings/str_cat.h"

namespace nsa::metadata::server {
namespace {

constexpr std::chrono::milliseconds kRetryAfter(50);

Refusal NoRoom(const CallContext& context, int64_t bytes, Account account) {
  const int64_t budget = context.options.output_budget_bytes;
  if (context.pool.OverShare(bytes, account)) {
    const int64_t share = ShareOf(context.options.caller_share, budget);
    return Later(v1::REFUSAL_REASON_CALLER_SHARE,
                 absl::StrCat("more than half of output_budget_bytes ", budget, " is in use, and an output of ", bytes,
                              " bytes more would pass this caller's share of it, ", share),
                 bytes, share, kRetryAfter);
  }
  return Later(v1::REFUSAL_REASON_BUDGET_FULL,
               absl::StrCat("no room for an output of ", bytes, " bytes in output_budget_bytes ", budget), bytes,
               budget, kRetryAfter);
}

}  // namespace

std::optional<Refusal> Admit(CallContext& context, std::unique_ptr<Task>* task) {
  Task& admitted = **task;
  const int64_t bytes = static_cast<int64_t>(admitted.expansion.layout.block_bytes());
  if (!admitted.permit) admitted.permit = context.pool.Reserve(bytes, admitted.account);
  if (!admitted.permit) return NoRoom(context, bytes, admitted.account);
  return context.batcher.Submit(task);
}

}  // namespace nsa::metadata::server
