// Whether the server takes a request that is valid.
#pragma once

#include <memory>
#include <optional>

#include "server/no_room.h"
#include "server/refusal.h"
#include "server/service.h"
#include "server/task.h"

namespace nsa::metadata::server {

// Gives `task` the permits for its lengths and its output and submits it. Takes `*task` only if it returns nothing;
// else the caller may refuse the task or try again later.
std::optional<NoRoom> Admit(CallContext& context, std::unique_ptr<Task>* task);

// What a caller is told of `why` Admit has left its task.
Refusal RefusalFor(NoRoom why, const CallContext& context, const Task& task);

}  // namespace nsa::metadata::server
