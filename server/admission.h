// Whether the server takes a request that is valid.
#pragma once

#include <optional>

#include "server/refusal.h"
#include "server/service.h"
#include "server/task.h"

namespace nsa::metadata::server {

// Gives `task` the permit for its output and submits it. Takes `*task` only if it returns nothing; else says why not
// now, and the caller may refuse the task or try again later.
std::optional<Refusal> Admit(CallContext& context, std::unique_ptr<Task>* task);

}  // namespace nsa::metadata::server
