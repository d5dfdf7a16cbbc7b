// Whether an installation computes right, and what it is worth.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/client.h"

namespace nsa::metadata::client {

// Time of one batch on the backend, by the server's own clock, median of some.
struct StepTime {
  int64_t tokens;
  double microseconds;
};

// What was found of one backend with one of its kernels.
struct Finding {
  std::string name;  // "cpu", "cuda, binary kernel"
  std::string device;
  int64_t checked = 0;  // expansions compared with the client's reference
  int64_t wrong = 0;
  std::string first_difference;
  std::vector<StepTime> times;  // by tokens, ascending
};

// Sends `client`'s server `requests` expansions of every output, drawn from a fixed seed, and compares each with the
// client's reference.
absl::Status CheckExpansions(Client& client, int64_t requests, Finding* finding);

// Times requests of 64 sequences and a doubling number of tokens. Blocks for about a second.
absl::Status TimeSteps(Client& client, Finding* finding);

// The fewest tokens of those timed from which `a` is always faster than `b`; nothing when it isn't at the most.
std::optional<int64_t> FasterFrom(const Finding& a, const Finding& b);

}  // namespace nsa::metadata::client
