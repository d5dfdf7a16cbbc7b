#include "tests/client/stream_fixture.h"

#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "client/outputs.h"
#include "client/reference.h"

namespace nsa::metadata::client {

Request StreamedRequest(uint64_t request_id) {
  static constexpr int32_t kExtendSeqLens[] = {3, 2};
  static constexpr int32_t kSeqLens[] = {10, 4};
  Request request(v1::SEQUENCE_MODE_CAUSAL);
  request.extend_seq_lens = kExtendSeqLens;
  request.seq_lens = kSeqLens;
  request.nsa_index_topk = 9;
  for (const OutputField& field : AllOutputs()) request.outputs.push_back(field.output);
  request.request_id = request_id;
  return request;
}

ExpandStream::Callback Outcomes::For(uint64_t request_id) {
  return [this, request_id](absl::StatusOr<v1::ExpandResponse> response) {
    const MutexLock lock(&mutex_);
    EXPECT_TRUE(responses_.emplace(request_id, std::move(response)).second) << "a second outcome of " << request_id;
    changed_.SignalAll();
  };
}

void Outcomes::Await(size_t count) {
  const MutexLock lock(&mutex_);
  while (responses_.size() < count) changed_.Wait(mutex_);
}

absl::StatusOr<v1::ExpandResponse> Outcomes::Of(uint64_t request_id) {
  const MutexLock lock(&mutex_);
  const auto response = responses_.find(request_id);
  if (response == responses_.end()) return absl::NotFoundError("no outcome");
  return response->second;
}

std::string Outcomes::DifferenceOf(uint64_t request_id) {
  const absl::StatusOr<v1::ExpandResponse> response = Of(request_id);
  if (!response.ok()) return response.status().ToString();
  return FirstDifference(*response, Reference(StreamedRequest(request_id)));
}

void StreamFixture::SendAll(uint64_t count) {
  for (uint64_t id = 0; id < count; ++id) EXPECT_EQ(Send(id), absl::OkStatus());
}

v1::ExpandResponse ReadAndExpand(FakeStream& stream) { return ReferenceOf(ReadFrom(stream).expand()); }

void ReadToTheEnd(FakeStream& stream) {
  v1::ExpandStreamRequest message;
  while (stream.Read(&message)) {
  }
}

}  // namespace nsa::metadata::client
