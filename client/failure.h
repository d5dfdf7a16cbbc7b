// How the program tells of a failure, and how it ends.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace nsa::metadata::client {

enum ExitCode : int { kOk = 0, kWrongBytes = 1, kUsage = 2, kUnreachable = 3, kRefused = 4, kDeadline = 5 };

// How the program ends after a call with this outcome.
ExitCode ExitCodeOf(const absl::Status& status);

// "QUEUE_FULL" for a refusal with that reason, otherwise the code's name, as "UNAVAILABLE".
std::string ReasonOf(const absl::Status& status);

// Says on stderr what went wrong with a call, or on stdout as one JSON object.
void PrintFailure(const absl::Status& status, bool json);

// Says on stderr what is wrong with the command line or a file it names. Answers kUsage.
ExitCode PrintUsageError(const absl::Status& status);

}  // namespace nsa::metadata::client
