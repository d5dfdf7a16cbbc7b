#include "server/reply_layout.h"

#include <google/protobuf/io/coded_stream.h>
#include <google/protobuf/wire_format_lite.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>
#include <string>

#include "inference/inference.pb.h"

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
// What a stream's message has around a whole reply: last_chunk 1 + 1, and the tag and length of the reply 1 + 5.
constexpr size_t kStreamHead = 8;
static_assert(kStreamHead + kScalars + kTagAndLength <= kAlignment);
// first_token 1 + 10.
constexpr size_t kFirstToken = 11;
// What a chunk has besides its arrays' values.
constexpr size_t kChunkHead = kFirstToken + kStreamHead + kScalars + kernels::kNumOutputs * kTagAndLength;

// An array up to this size is moved up to the one before it: below it that costs less than a slice of its own.
constexpr size_t kMovedBytes = 4096;

constexpr size_t AlignUp(size_t offset) { return (offset + kAlignment - 1) / kAlignment * kAlignment; }

uint32_t Tag(kernels::Output output) {
  const int field = v1::ExpandResponse::kSeqlensExpandedFieldNumber + static_cast<int>(output);
  return WireFormatLite::MakeTag(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED);
}

constexpr uint32_t kRawTag = WireFormatLite::MakeTag(inference::ModelInferResponse::kRawOutputContentsFieldNumber,
                                                     WireFormatLite::WIRETYPE_LENGTH_DELIMITED);

uint8_t* WriteLength(int field, size_t bytes, uint8_t* to) {
  to = WireFormatLite::WriteTagToArray(field, WireFormatLite::WIRETYPE_LENGTH_DELIMITED, to);
  return CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(bytes), to);
}

// What comes before the fields of an ExpandResponse of `bytes` bytes in the message of a stream.
std::string StreamHead(int64_t first_token, bool last, size_t bytes) {
  uint8_t head[kStreamHead + kFirstToken];
  uint8_t* end = head;
  if (first_token != 0) {
    end = WireFormatLite::WriteInt64ToArray(v1::ExpandStreamResponse::kFirstTokenFieldNumber, first_token, end);
  }
  if (last) end = WireFormatLite::WriteBoolToArray(v1::ExpandStreamResponse::kLastChunkFieldNumber, true, end);
  end = WriteLength(v1::ExpandStreamResponse::kExpansionFieldNumber, bytes, end);
  return std::string(head, end);
}

ReplyMessage Message(std::span<const grpc::Slice> slices, const OutputPermit& permit, OutputPool& pool) {
  if (pool.scarce()) {
    if (std::optional<grpc::Slice> copy = pool.CopyToHeap(slices, permit.account())) return ReplyMessage(&*copy, 1);
  }
  return ReplyMessage(slices.data(), slices.size());
}

}  // namespace

std::string ReplyScalars::Encode() const {
  uint8_t bytes[kScalars];
  uint8_t* end = bytes;
  if (request_id != 0) {
    end = WireFormatLite::WriteUInt64ToArray(v1::ExpandResponse::kRequestIdFieldNumber, request_id, end);
  }
  if (total_tokens != 0) {
    end = WireFormatLite::WriteInt64ToArray(v1::ExpandResponse::kTotalTokensFieldNumber, total_tokens, end);
  }
  if (mode != 0) end = WireFormatLite::WriteEnumToArray(v1::ExpandResponse::kModeFieldNumber, mode, end);
  if (timing != nullptr) {
    end = WriteLength(v1::ExpandResponse::kTimingFieldNumber, timing->ByteSizeLong(), end);
    end = timing->SerializeWithCachedSizesToArray(end);
  }
  return std::string(bytes, end);
}

ReplyLayout::ReplyLayout(kernels::OutputSet outputs, int64_t num_sequences, int64_t total_tokens, Framing framing,
                         std::string inference_head)
    : framing_(framing),
      inference_head_(std::move(inference_head)),
      total_tokens_(total_tokens),
      block_bytes_(kAlignment),
      wire_bytes_(framing == Framing::kInference ? inference_head_.size() : kScalars) {
  // The first array has all other fields before it.
  const size_t first = AlignUp(std::max(inference_head_.size(), kScalars + kStreamHead) + kTagAndLength);
  outputs.ForEach([&](kernels::Output output) {
    const size_t bytes = sizeof(int32_t) * kernels::OutputLength(output, num_sequences, total_tokens);
    const size_t offset = num_arrays_ == 0 ? first : AlignUp(block_bytes_ + kTagAndLength);
    const bool per_token = output != kernels::Output::kCuSeqlensQ && output != kernels::Output::kCuSeqlensK;
    const Array& array = arrays_[num_arrays_++] = {output, offset, bytes, per_token};
    block_bytes_ = offset + bytes;
    if (!LeftOut(array)) wire_bytes_ += HeadBytes(array) + bytes;
  });
}

uint32_t ReplyLayout::TagOf(const Array& array) const {
  return framing_ == Framing::kInference ? kRawTag : Tag(array.output);
}

size_t ReplyLayout::HeadBytes(const Array& array) const {
  return CodedOutputStream::VarintSize32(TagOf(array)) +
         CodedOutputStream::VarintSize32(static_cast<uint32_t>(array.bytes));
}

uint8_t* ReplyLayout::WriteHead(const Array& array, uint8_t* to) const {
  to = CodedOutputStream::WriteVarint32ToArray(TagOf(array), to);
  return CodedOutputStream::WriteVarint32ToArray(static_cast<uint32_t>(array.bytes), to);
}

kernels::OutputPointers ReplyLayout::Pointers(uint8_t* base) const {
  kernels::OutputPointers out = {};
  for (size_t i = 0; i < num_arrays_; ++i) {
    out[static_cast<size_t>(arrays_[i].output)] = reinterpret_cast<int32_t*>(base + arrays_[i].offset);
  }
  return out;
}

Messages ReplyLayout::Frame(const ReplyScalars& scalars, const OutputPermit& permit, OutputPool& pool) const {
  Messages messages;
  if (framing_ == Framing::kInference) {
    messages.push_back(FrameWhole(inference_head_, permit, pool));
    return messages;
  }
  const std::string head = scalars.Encode();
  size_t bytes = head.size();
  for (size_t i = 0; i < num_arrays_; ++i) {
    if (!LeftOut(arrays_[i])) bytes += HeadBytes(arrays_[i]) + arrays_[i].bytes;
  }
  if (framing_ == Framing::kUnary) {
    messages.push_back(FrameWhole(head, permit, pool));
  } else if (bytes + kStreamHead <= kMaxChunkBytes || total_tokens_ == 0 || !HasPerToken()) {
    messages.push_back(FrameWhole(StreamHead(0, /*last=*/true, bytes) + head, permit, pool));
  } else {
    for (int64_t begin = 0; begin < total_tokens_;) {
      const int64_t end = std::min(begin + ChunkTokens(begin), total_tokens_);
      messages.push_back(FrameChunk({begin, end, end == total_tokens_}, head, permit, pool));
      begin = end;
    }
  }
  return messages;
}

// What comes before each array is written into the room before it, so that both are one piece.
ReplyMessage ReplyLayout::FrameWhole(const std::string& head, const OutputPermit& permit, OutputPool& pool) const {
  struct Piece {
    size_t begin;
    size_t bytes;
  };
  absl::InlinedVector<Piece, kernels::kNumOutputs> pieces;
  uint8_t* const base = permit.data();
  for (size_t i = 0; i < num_arrays_; ++i) {
    const Array& array = arrays_[i];
    if (LeftOut(array)) continue;
    const size_t before = pieces.empty() ? head.size() : 0;
    const size_t begin = array.offset - HeadBytes(array) - before;
    const size_t bytes = array.offset + array.bytes - begin;
    head.copy(reinterpret_cast<char*>(base + begin), before);
    WriteHead(array, base + begin + before);
    if (!pieces.empty() && bytes <= kMovedBytes) {
      Piece& last = pieces.back();
      memmove(base + last.begin + last.bytes, base + begin, bytes);
      last.bytes += bytes;
    } else {
      pieces.push_back({begin, bytes});
    }
  }
  if (pieces.empty()) {
    head.copy(reinterpret_cast<char*>(base), head.size());
    pieces.push_back({0, head.size()});
  }
  absl::InlinedVector<grpc::Slice, kernels::kNumOutputs> slices;
  for (const Piece& piece : pieces) slices.push_back(permit.Slice(piece.begin, piece.bytes));
  return Message(slices, permit, pool);
}

std::pair<int64_t, int64_t> ReplyLayout::Values(const Array& array, const Chunk& chunk) const {
  const int64_t all = static_cast<int64_t>(array.bytes / sizeof(int32_t));
  if (!array.per_token) return {0, chunk.begin == 0 ? all : 0};
  // nsa_cu_seqlens_k has one value more than there are tokens; it ends the last chunk.
  return {chunk.begin, chunk.last ? all : chunk.end};
}

bool ReplyLayout::HasPerToken() const {
  return std::any_of(arrays_.begin(), arrays_.begin() + num_arrays_,
                     [](const Array& array) { return array.per_token; });
}

int64_t ReplyLayout::ChunkTokens(int64_t begin) const {
  size_t room = kMaxChunkBytes - kChunkHead - sizeof(int32_t);
  size_t a_token = 0;
  for (size_t i = 0; i < num_arrays_; ++i) {
    if (arrays_[i].per_token) {
      a_token += sizeof(int32_t);
    } else if (begin == 0) {
      room -= std::min(room, arrays_[i].bytes);
    }
  }
  // A chunk moves on by a token at least, even where sums over sequences fill it.
  return std::max<int64_t>(static_cast<int64_t>(room / std::max<size_t>(a_token, 1)), 1);
}

// The values stay where they are; what comes before them is in slices of its own, since other chunks' values lie there.
ReplyMessage ReplyLayout::FrameChunk(const Chunk& chunk, const std::string& scalars, const OutputPermit& permit,
                                     OutputPool& pool) const {
  std::array<grpc::Slice, 2 * kernels::kNumOutputs + 1> slices;
  size_t num_slices = 1;
  size_t bytes = scalars.size();
  for (size_t i = 0; i < num_arrays_; ++i) {
    const auto [first, end] = Values(arrays_[i], chunk);
    if (first == end) continue;
    const size_t value_bytes = static_cast<size_t>(end - first) * sizeof(int32_t);
    // Its part that is here, as an array of its own.
    const Array part = {.output = arrays_[i].output, .offset = 0, .bytes = value_bytes, .per_token = true};
    uint8_t head[kTagAndLength];
    const auto head_bytes = static_cast<size_t>(WriteHead(part, head) - head);
    bytes += head_bytes + value_bytes;
    slices[num_slices++] = grpc::Slice(head, head_bytes);
    slices[num_slices++] = permit.Slice(arrays_[i].offset + static_cast<size_t>(first) * sizeof(int32_t), value_bytes);
  }
  slices[0] = grpc::Slice(StreamHead(chunk.begin, chunk.last, bytes) + scalars);
  return Message({slices.data(), num_slices}, permit, pool);
}

}  // namespace nsa::metadata::server
