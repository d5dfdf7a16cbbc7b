#include "server/reply_layout.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <optional>

namespace nsa::metadata::server {
namespace {

using google::protobuf::internal::WireFormatLite;
using google::protobuf::io::CodedOutputStream;

// Values begin on a cache line, which is also what wide device stores want.
constexpr size_t kAlignment = 128;
// A tag of two bytes and a length of five at most.
constexpr size_t kTagAndLength = 7;
// The largest scalars: id and total 1 + 10 each, mode 1 + 1, timing 1 + 1 and its 6 * (1 + 10) + 2 * (1 + 5) + (1 + 1).
constexpr size_t kScalars = 106;
static_assert(kScalars + kTagAndLength <= kAlignment);

constexpr size_t AlignUp(size_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

uint32_t Tag(kernels::Output output) {
  const int field = v1::ExpandResponse::kSeqlensExpandedFieldNumber + static_cast<int>(output);
  return WireFormatLite::MakeTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
}

size_t HeadBytes(kernels::Output output, size_t bytes) {
  return CodedOutputStream::VarintSize32(Tag(output)) + CodedOutputStream::VarintSize32(static_cast<uint32_t>(bytes));
}

}  // namespace

ReplyLayout::ReplyLayout(kernels::OutputSet outputs, int64_t num_sequences, int64_t total_tokens)
    : block_bytes_(kAlignment), wire_bytes_(kScalars) {
  for (kernels::Output output : kernels::kAllOutputs) {
    if (!outputs.Has(output)) continue;
    const size_t bytes = sizeof(int32_t) * kernels::OutputLength(output, num_sequences, total_tokens);
    const size_t offset = num_arrays_ == 0 ? kAlignment : AlignUp(block_bytes_ + kTagAndLength);
    arrays_[num_arrays_++] = {output, offset, bytes};
    block_bytes_ = offset + bytes;
    if (bytes > 0) wire_bytes_ += HeadBytes(output, bytes) + bytes;
  }
}

kernels::OutputPointers ReplyLayout::Pointers(uint8_t* base) const {
  kernels::OutputPointers out = {};
  for (size_t i = 0; i < num_arrays_; ++i) {
    out[static_cast<size_t>(arrays_[i].output)] = reinterpret_cast<int32_t*>(base + arrays_[i].offset);
  }
  return out;
}

grpc::ByteBuffer ReplyLayout::Frame(const v1::ExpandResponse& scalars, const OutputPermit& permit,
                                    OutputPool& pool) const {
  std::array<grpc::Slice, kernels::kNumOutputs + 1> slices;
  size_t num_slices = 0;
  uint8_t* const base = permit.data();
  size_t scalars_bytes = scalars.ByteSizeLong();
  for (size_t i = 0; i < num_arrays_; ++i) {
    const Array& array = arrays_[i];
    if (array.bytes == 0) continue;  // proto3 leaves an empty array out
    const size_t before = num_slices == 0 ? scalars_bytes : 0;
    const size_t begin = array.offset - HeadBytes(array.output, array.bytes) - before;
    uint8_t* head = base + begin;
    if (before > 0) head = scalars.SerializeWithCachedSizesToArray(head);
    head = CodedOutputStream::WriteVarint32ToArray(Tag(array.output), head);
    CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(array.bytes), head);
    slices[num_slices++] = permit.Slice(begin, array.offset + array.bytes - begin);
  }
  if (num_slices == 0) {
    scalars.SerializeWithCachedSizesToArray(base);
    slices[num_slices++] = permit.Slice(0, scalars_bytes);
  }
  if (pool.scarce()) {
    if (std::optional<grpc::Slice> copy = pool.CopyToHeap({slices.data(), num_slices})) return {&*copy, 1};
  }
  return grpc::ByteBuffer(slices.data(), num_slices);
}

}  // namespace nsa::metadata::server
