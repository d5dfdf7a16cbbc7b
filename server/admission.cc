#include "server/admission.h"

#include <chrono>

#include "absl/strings/str_cat.h"

namespace nsa::metadata::server {
namespace {

constexpr std::chrono::milliseconds kRetryAfter(50);

}  // namespace

std::optional<Refusal> Admit(CallContext& context, std::unique_ptr<Task>* task) {
  Task& admitted = **task;
  const int64_t bytes = static_cast<int64_t>(admitted.expansion.layout.block_bytes());
  if (!admitted.permit) admitted.permit = context.pool.Reserve(bytes);
  if (!admitted.permit) {
    const int64_t budget = context.options.output_budget_bytes;
    return Later(v1::REFUSAL_REASON_BUDGET_FULL,
                 absl::StrCat("no room for an output of ", bytes, " bytes in output_budget_bytes ", budget), bytes,
                 budget, kRetryAfter);
  }
  return context.batcher.Submit(task);
}

}  // namespace nsa::metadata::server
