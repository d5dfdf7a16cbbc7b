#include "server/admission.h"

#include <chrono>

#include "absl/strings/str_cat.h"

namespace nsa::metadata::server {
namespace {

constexpr std::chrono::milliseconds kRetryAfter(50);

int64_t OutputBytes(const Task& task) { return static_cast<int64_t>(task.expansion.layout.block_bytes()); }

// `what` of `bytes` bytes, of which there is no room in the budget that `flag` names.
struct Asked {
  const char* flag;
  const char* what;
  int64_t bytes;
  int64_t budget;
};

Refusal ShareUsed(const Asked& asked, double caller_share) {
  const int64_t share = ShareOf(caller_share, asked.budget);
  return Later(v1::REFUSAL_REASON_CALLER_SHARE,
               absl::StrCat("more than half of ", asked.flag, " ", asked.budget, " is in use, and ", asked.what, " of ",
                            asked.bytes, " bytes more would pass this caller's share of it, ", share),
               asked.bytes, share, kRetryAfter);
}

Refusal BudgetUsed(const Asked& asked, int64_t in_use, const char* how) {
  return Later(v1::REFUSAL_REASON_BUDGET_FULL,
               absl::StrCat("no room for ", asked.what, " of ", asked.bytes, " bytes", how, ": ", in_use, " of ",
                            asked.flag, " ", asked.budget, " are in use"),
               asked.bytes, asked.budget, kRetryAfter);
}

Refusal NoLengths(const CallContext& context, const Task& task) {
  const Asked asked = {"lengths_budget_bytes", "lengths", task.lengths_bytes(), context.lengths.bytes()};
  if (context.lengths.OverShare(asked.bytes, task.account)) return ShareUsed(asked, context.options.caller_share);
  return BudgetUsed(asked, context.lengths.bytes_in_use(), "");
}

Refusal NoOutput(const CallContext& context, const Task& task) {
  const Asked asked = {"output_budget_bytes", "an output", OutputBytes(task), context.options.output_budget_bytes};
  if (context.pool.OverShare(static_cast<size_t>(asked.bytes), task.account)) {
    return ShareUsed(asked, context.options.caller_share);
  }
  const auto in_use = static_cast<int64_t>(context.pool.blocks_in_use() * OutputPool::kBlockBytes);
  return BudgetUsed(asked, in_use, " in one piece");
}

Refusal QueueFull(const CallContext& context) {
  const int64_t limit = context.options.batch.max_queue_requests;
  return Later(v1::REFUSAL_REASON_QUEUE_FULL, absl::StrCat("the queue holds ", limit, " requests, max_queue_requests"),
               limit, limit, kRetryAfter);
}

Refusal QueueShareFull(const CallContext& context) {
  const int64_t share = ShareOf(context.options.caller_share, context.options.batch.max_queue_requests);
  return Later(v1::REFUSAL_REASON_CALLER_SHARE,
               absl::StrCat("the queue is more than half full and holds at least ", share,
                            " requests of this caller, its share of max_queue_requests"),
               share, share, kRetryAfter);
}

}  // namespace

std::optional<NoRoom> Admit(CallContext& context, std::unique_ptr<Task>* task) {
  Task& admitted = **task;
  if (const int64_t bytes = admitted.lengths_bytes(); bytes > 0 && !admitted.lengths_permit) {
    admitted.lengths_permit = context.lengths.Reserve(bytes, admitted.account);
    if (!admitted.lengths_permit) return NoRoom::kLengths;
  }
  if (!admitted.permit) {
    admitted.permit = context.pool.Reserve(static_cast<size_t>(OutputBytes(admitted)), admitted.account);
  }
  if (!admitted.permit) return NoRoom::kOutput;
  return context.batcher.Submit(task);
}

Refusal RefusalFor(NoRoom why, const CallContext& context, const Task& task) {
  switch (why) {
    case NoRoom::kLengths:
      return NoLengths(context, task);
    case NoRoom::kQueue:
      return QueueFull(context);
    case NoRoom::kQueueShare:
      return QueueShareFull(context);
    case NoRoom::kOutput:
      break;
  }
  return NoOutput(context, task);
}

}  // namespace nsa::metadata::server
