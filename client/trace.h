// Reads traces of model invocations.
#pragma once

#include <cstdint>
#include <istream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace nsa::metadata::client {

// One call of a model.
struct Invocation {
  absl::Time arrival;
  // Tokens of the prompt, and tokens generated after it. Neither is negative, and their sum fits int32.
  int32_t context_tokens = 0;
  int32_t generated_tokens = 0;
};

// Reads a CSV file with the columns TIMESTAMP,ContextTokens,GeneratedTokens, as the Azure LLM inference traces have
// them: a header of those names, then one invocation a line with a time as "2023-11-16 18:15:46.6805900", 1970 or
// later. Lines may end in CRLF; empty ones are skipped. Answers the invocations by arrival; those of the same time keep
// their order. Errors name the file, the line, and the value at fault: NOT_FOUND if it can't be read, INVALID_ARGUMENT
// for its content.
absl::StatusOr<std::vector<Invocation>> ReadTrace(const std::string& path);

// The same from a stream; `name` stands for the file in errors.
absl::StatusOr<std::vector<Invocation>> ParseTrace(std::istream& in, const std::string& name);

}  // namespace nsa::metadata::client
