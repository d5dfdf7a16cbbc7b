#include "server/admission.h"

#include <chrono>

#include "absl/strings/str_cat.h"

namespace nsa::metadata::server {
namespace {

constexpr std::chrono::milliseconds kRetryAfter(50);

int64_t OutputBytes(const Task& task) { return static_cast<int64_t>(task.expansion.layout.block_bytes()); }

Refusal NoLengths(const CallContext& context, const Task& task) {
  const int64_t bytes = task.lengths_bytes();
  const int64_t budget = context.lengths.bytes();
  if (context.lengths.OverShare(bytes, task.account)) {
    const int64_t share = ShareOf(context.options.caller_share, budget);
    return Later(v1::REFUSAL_REASON_CALLER_SHARE,
                 absl::StrCat("more than half of lengths_budget_bytes ", budget, " is in use, and lengths of ", bytes,
                              " bytes more would pass this caller's share of it, ", share),
                 bytes, share, kRetryAfter);
  }
  return Later(v1::REFUSAL_REASON_BUDGET_FULL,
               absl::StrCat("no room for lengths of ", bytes, " bytes: ", context.lengths.bytes_in_use(),
                            " of lengths_budget_bytes ", budget, " are in use"),
               bytes, budget, kRetryAfter);
}

Refusal NoOutput(const CallContext& context, const Task& task) {
  const int64_t bytes = OutputBytes(task);
  const int64_t budget = context.options.output_budget_bytes;
  if (context.pool.OverShare(static_cast<size_t>(bytes), task.account)) {
    const int64_t share = ShareOf(context.options.caller_share, budget);
    return Later(v1::REFUSAL_REASON_CALLER_SHARE,
                 absl::StrCat("more than half of output_budget_bytes ", budget, " is in use, and an output of ", bytes,
                              " bytes more would pass this caller's share of it, ", share),
                 bytes, share, kRetryAfter);
  }
  return Later(v1::REFUSAL_REASON_BUDGET_FULL,
               absl::StrCat("no room for an output of ", bytes,
                            " bytes in one piece: ", context.pool.blocks_in_use() * OutputPool::kBlockBytes,
                            " of output_budget_bytes ", budget, " are in use"),
               bytes, budget, kRetryAfter);
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
