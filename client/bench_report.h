// Prints what a benchmark measured.
#pragma once

#include <string>

#include "client/bench_request.h"
#include "client/load.h"

namespace nsa::metadata::client {

// Lines for people, with a histogram of the latencies.
std::string BenchText(const BenchRequest& request, const LoadOptions& options, const LoadResult& result);

// The same as one JSON object, without the histogram; times in microseconds.
std::string BenchJson(const BenchRequest& request, const LoadOptions& options, const LoadResult& result);

}  // namespace nsa::metadata::client
