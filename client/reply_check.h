// Compares the replies of a benchmark with the one that is right.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "client/bench_request.h"
#include "client/chunks.h"

namespace nsa::metadata::client {

// How one request ended.
struct Outcome {
  uint64_t request_id = 0;
  absl::Status status;
  // How the reply is wrong; empty if it isn't.
  std::string difference;
  std::optional<v1::Timing> timing;
};

// Every reply is compared whole. The first one is decoded and compared value by value; once it was right, replies of
// the very same bytes, but for the request's id, are right too, which costs no more than a checksum. Others are decoded
// as the first one was. Not thread-safe.
class ReplyCheck {
 public:
  // `request` outlives this.
  explicit ReplyCheck(const BenchRequest& request) : want_(request.reply()) {}

  // A unary reply to the request with this id.
  Outcome Unary(const grpc::ByteBuffer& reply, uint64_t request_id);
  // A message of a stream; nothing if more of the same item are to come. The id is 0 where the message can't be read.
  std::optional<Outcome> Stream(const grpc::ByteBuffer& message);

 private:
  Outcome Compare(const v1::ExpandResponse& got, uint64_t request_id);
  // The id if `bytes` are those of the right reply with another id; the slices are left in slices_.
  std::optional<uint64_t> IdIfSame(const grpc::ByteBuffer& bytes);
  // Remembers `bytes` as those of the right reply to the request with this id.
  void Learn(const grpc::ByteBuffer& bytes, uint64_t request_id);

  const v1::ExpandResponse& want_;
  // The right reply's bytes, and where the id's three are; empty until one came.
  std::string right_;
  size_t id_at_ = 0;
  std::vector<grpc::Slice> slices_;
  std::unordered_map<uint64_t, Chunks> begun_;
};

}  // namespace nsa::metadata::client
