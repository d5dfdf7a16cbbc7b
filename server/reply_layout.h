// Where a reply's arrays lie in its blocks, and how they become the bytes of an ExpandResponse, or of a
// ModelInferResponse, without being encoded.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/container/inlined_vector.h"
#include "kernels/request_batch.h"
#include "nsa/metadata/v1/metadata.pb.h"
#include "server/output_pool.h"
#include "server/reply_message.h"

namespace nsa::metadata::server {

// What a reply's message is: an ExpandResponse, an ExpandStreamResponse around one, or a ModelInferResponse.
enum class Framing : uint8_t { kUnary, kStream, kInference };

// An ExpandResponse's fields that are no arrays.
struct ReplyScalars {
  uint64_t request_id = 0;
  int64_t total_tokens = 0;
  v1::SequenceMode mode = v1::SEQUENCE_MODE_UNSPECIFIED;
  // Null unless it was asked for.
  const v1::Timing* timing = nullptr;

  std::string Encode() const;
};

using Messages = absl::InlinedVector<ReplyMessage, 1>;

// A packed sfixed32 field is a tag, a length and the array's own bytes, and so is one of bytes. So each asked array
// lies in the blocks with room before it, and its tag and length are written right there once it is computed: a reply
// is one slice of the blocks per array, nothing is moved but a small array, up to the one before it, to save a slice.
class ReplyLayout {
 public:
  ReplyLayout() = default;
  // `inference_head`: with Framing::kInference the encoded fields before the raw arrays.
  ReplyLayout(kernels::OutputSet outputs, int64_t num_sequences, int64_t total_tokens,
              Framing framing = Framing::kUnary, std::string inference_head = {});

  // Bytes of output memory to reserve.
  size_t block_bytes() const { return block_bytes_; }
  // Bytes of the encoded reply, at most: its scalar fields are counted at their largest.
  size_t wire_bytes() const { return wire_bytes_; }

  // Where each asked output goes in memory that begins at `base`; null where it was not asked.
  kernels::OutputPointers Pointers(uint8_t* base) const;

  // The messages that carry the reply: `scalars`, which a ModelInferResponse has none of, and the arrays that were
  // computed in `permit`. Copies instead of slices when `pool` is scarce. Once only: the arrays may have been moved.
  Messages Frame(const ReplyScalars& scalars, const OutputPermit& permit, OutputPool& pool) const;

  // Replies on a stream over this many bytes go in several messages.
  static constexpr size_t kMaxChunkBytes = size_t{1} << 20;

 private:
  struct Array {
    kernels::Output output;
    size_t offset;  // of its first value, from the blocks' begin
    size_t bytes;
    bool per_token;
  };
  // Tokens [begin, end) as one message.
  struct Chunk {
    int64_t begin;
    int64_t end;
    bool last;
  };
  // An array's tag and length, and how many bytes they take.
  uint32_t TagOf(const Array& array) const;
  size_t HeadBytes(const Array& array) const;
  uint8_t* WriteHead(const Array& array, uint8_t* to) const;
  // proto3 leaves an empty array out, but not one of repeated bytes.
  bool LeftOut(const Array& array) const { return array.bytes == 0 && framing_ != Framing::kInference; }
  ReplyMessage FrameWhole(const std::string& head, const OutputPermit& permit, OutputPool& pool) const;
  ReplyMessage FrameChunk(const Chunk& chunk, const std::string& scalars, const OutputPermit& permit,
                          OutputPool& pool) const;
  // The values of an array that a chunk carries: first and past the last.
  std::pair<int64_t, int64_t> Values(const Array& array, const Chunk& chunk) const;
  bool HasPerToken() const;
  // How many tokens fit a chunk that begins at `begin`, of a reply that has arrays of one value a token.
  int64_t ChunkTokens(int64_t begin) const;
  Framing framing_ = Framing::kUnary;
  std::string inference_head_;
  std::array<Array, kernels::kNumOutputs> arrays_ = {};
  size_t num_arrays_ = 0;
  int64_t total_tokens_ = 0;
  size_t block_bytes_ = 0;
  size_t wire_bytes_ = 0;
};

}  // namespace nsa::metadata::server
