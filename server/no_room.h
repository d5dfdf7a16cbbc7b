// Why a valid request is not taken just now.
#pragma once

#include <cstdint>

namespace nsa::metadata::server {

// The bound that it would pass. Small: a stream asks again and again.
enum class NoRoom : uint8_t {
  kLengths,     // the lengths' budget, or the caller's share of it
  kOutput,      // the output budget, or the caller's share of it
  kQueue,       // max_queue_requests
  kQueueShare,  // the caller's share of them
};

}  // namespace nsa::metadata::server
