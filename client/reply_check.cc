#include "client/reply_check.h"

#include <grpcpp/impl/codegen/proto_utils.h>

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "client/reference.h"
#include "client/status.h"

namespace nsa::metadata::client {
namespace {

constexpr size_t kIdBytes = 3;
constexpr char kIdTag = 1 << 3;  // request_id is field 1, a varint
// The id stands before the arrays.
constexpr size_t kIdWithin = 128;

std::string IdVarint(uint64_t id) {
  const auto byte = [id](int shift) { return static_cast<char>((id >> shift & 0x7f) | (shift < 14 ? 0x80 : 0)); };
  return {byte(0), byte(7), byte(14)};
}

uint64_t IdOf(const uint8_t* varint) {
  return uint64_t{varint[0]} % 128 | uint64_t{varint[1]} % 128 << 7 | uint64_t{varint[2]} << 14;
}

template <typename Message>
absl::Status Decode(const grpc::ByteBuffer& bytes, Message* message) {
  grpc::ByteBuffer source = bytes;  // of which only the slices' references are copied
  const grpc::Status status = grpc::SerializationTraits<Message>::Deserialize(&source, message);
  if (status.ok()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("a reply of ", bytes.Length(), " bytes is no ", message->GetTypeName()));
}

}  // namespace

Outcome ReplyCheck::Unary(const grpc::ByteBuffer& reply, uint64_t request_id) {
  if (IdIfSame(reply) == request_id) return {.request_id = request_id, .status = {}, .difference = {}, .timing = {}};
  v1::ExpandResponse got;
  if (absl::Status status = Decode(reply, &got); !status.ok()) {
    return {.request_id = request_id, .status = {}, .difference = std::string(status.message()), .timing = {}};
  }
  Outcome outcome = Compare(got, request_id);
  if (outcome.difference.empty() && !outcome.timing) Learn(reply, request_id);
  return outcome;
}

std::optional<Outcome> ReplyCheck::Stream(const grpc::ByteBuffer& message) {
  if (const std::optional<uint64_t> id = IdIfSame(message)) {
    return Outcome{.request_id = *id, .status = {}, .difference = {}, .timing = {}};
  }
  v1::ExpandStreamResponse got;
  if (absl::Status status = Decode(message, &got); !status.ok()) {
    return Outcome{.request_id = 0, .status = {}, .difference = std::string(status.message()), .timing = {}};
  }
  if (got.has_refusal()) {
    return Outcome{.request_id = got.refusal().request_id(),
                   .status = ToAbslStatus(got.refusal()),
                   .difference = {},
                   .timing = {}};
  }
  const uint64_t id = got.expansion().request_id();
  const bool whole = got.first_token() == 0 && got.last_chunk();
  const bool last = got.last_chunk();
  Chunks& chunks = begun_[id];
  const absl::Status fits = chunks.Append(got);
  if (fits.ok() && !last) return std::nullopt;
  Outcome outcome =
      fits.ok() ? Compare(chunks.Take(), id)
                : Outcome{.request_id = id, .status = {}, .difference = std::string(fits.message()), .timing = {}};
  begun_.erase(id);
  if (whole && outcome.difference.empty() && !outcome.timing) Learn(message, id);
  return outcome;
}

Outcome ReplyCheck::Compare(const v1::ExpandResponse& got, uint64_t request_id) {
  Outcome outcome{.request_id = request_id, .status = {}, .difference = {}, .timing = {}};
  if (got.has_timing()) outcome.timing = got.timing();
  if (got.request_id() != request_id) {
    outcome.difference = absl::StrCat("request_id: got ", got.request_id(), ", want ", request_id);
    return outcome;
  }
  v1::ExpandResponse same_id = got;
  same_id.set_request_id(want_.request_id());
  outcome.difference = FirstDifference(same_id, want_);
  return outcome;
}

std::optional<uint64_t> ReplyCheck::IdIfSame(const grpc::ByteBuffer& bytes) {
  if (right_.empty() || bytes.Length() != right_.size()) return std::nullopt;
  slices_.clear();
  if (!bytes.Dump(&slices_).ok() || slices_.front().size() < id_at_ + kIdBytes) return std::nullopt;
  const grpc::Slice& first = slices_.front();
  const uint8_t* const id = first.begin() + id_at_;
  if (id[0] < 0x80 || id[1] < 0x80 || id[2] >= 0x80) return std::nullopt;
  const char* want = right_.data();
  const size_t after_id = id_at_ + kIdBytes;
  if (memcmp(first.begin(), want, id_at_) != 0) return std::nullopt;
  if (memcmp(first.begin() + after_id, want + after_id, first.size() - after_id) != 0) return std::nullopt;
  want += first.size();
  for (auto slice = slices_.begin() + 1; slice != slices_.end(); ++slice) {
    if (memcmp(slice->begin(), want, slice->size()) != 0) return std::nullopt;
    want += slice->size();
  }
  return IdOf(id);
}

void ReplyCheck::Learn(const grpc::ByteBuffer& bytes, uint64_t request_id) {
  slices_.clear();
  if (!bytes.Dump(&slices_).ok()) return;
  std::string right;
  for (const grpc::Slice& slice : slices_) right.append(slice.begin(), slice.end());
  const size_t tag_at = right.substr(0, kIdWithin).find(kIdTag + IdVarint(request_id));
  if (tag_at == std::string::npos) return;
  id_at_ = tag_at + 1;
  right_ = std::move(right);
}

}  // namespace nsa::metadata::client
