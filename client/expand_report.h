// Prints one expansion.
#pragma once

#include <string>

#include "client/request.h"

namespace nsa::metadata::client {

// A table with a row a token: its index, its sequence, and the per-token outputs asked for; below it the running sums,
// a line each, and the timing if there is one. At most `max_rows` tokens and sums are shown, and how many there are
// beyond.
std::string ExpandTable(const Request& request, const v1::ExpandResponse& response, int64_t max_rows);

// The same as one JSON object, complete.
std::string ExpandJson(const Request& request, const v1::ExpandResponse& response);

}  // namespace nsa::metadata::client
