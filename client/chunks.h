// Puts the chunks of a streamed expansion together.
#pragma once

#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "nsa/metadata/v1/metadata.pb.h"

namespace nsa::metadata::client {

// One expansion's chunks, in the order in which they came. Not thread-safe.
class Chunks {
 public:
  // Appends the expansion in `message`, and takes its arrays. INTERNAL says how it doesn't fit the chunks before it,
  // or, with last_chunk, how the whole is not one expansion; the chunks are then of no further use.
  absl::Status Append(v1::ExpandStreamResponse& message);

  // What a unary call would have answered. Call it once, after the last chunk.
  v1::ExpandResponse Take() { return std::move(whole_); }

 private:
  v1::ExpandResponse whole_;
  bool begun_ = false;
  // Those in whole_.
  int64_t tokens_ = 0;
};

}  // namespace nsa::metadata::client
