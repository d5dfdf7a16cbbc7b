// Where a reply's arrays lie in its blocks, and how they become the bytes of an ExpandResponse without being encoded.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "grpcpp/support/byte_buffer.h"
#include "kernels/packed_batch.h"
#include "nsa/metadata/v1/metadata.pb.h"
#include "server/output_pool.h"

namespace nsa::metadata::server {

// A packed sfixed32 field is a tag, a length and the array's own bytes. So each asked array lies in the blocks with
// room before it, and its tag and length are written right there once it is computed: a reply is one slice of the
// blocks per array, nothing is moved.
class ReplyLayout {
 public:
  ReplyLayout() = default;
  ReplyLayout(kernels::OutputSet outputs, int64_t num_sequences, int64_t total_tokens);

  // Bytes of output memory to reserve.
  size_t block_bytes() const { return block_bytes_; }
  // Bytes of the encoded reply, at most: its scalar fields are counted at their largest.
  size_t wire_bytes() const { return wire_bytes_; }

  // Where each asked output goes in memory that begins at `base`; null where it was not asked.
  kernels::OutputPointers Pointers(uint8_t* base) const;

  // The encoded reply: `scalars` (an ExpandResponse without arrays) and the arrays that were computed in `permit`. A
  // copy instead of slices when `pool` is scarce.
  grpc::ByteBuffer Frame(const v1::ExpandResponse& scalars, const OutputPermit& permit, OutputPool& pool) const;

 private:
  struct Array {
    kernels::Output output;
    size_t offset;  // of its first value, from the blocks' begin
    size_t bytes;
  };
  std::array<Array, kernels::kNumOutputs> arrays_ = {};
  size_t num_arrays_ = 0;
  size_t block_bytes_ = 0;
  size_t wire_bytes_ = 0;
};

}  // namespace nsa::metadata::server
