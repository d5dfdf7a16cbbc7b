// Prints what a replay did.
#pragma once

#include <string>

#include "client/replay_run.h"

namespace nsa::metadata::client {

// Lines for people.
std::string ReplayText(const ReplayTally& tally, bool verified);

// The same as one JSON object; latencies in microseconds. Without a request its latencies are null.
std::string ReplayJson(const ReplayTally& tally, bool verified);

}  // namespace nsa::metadata::client
