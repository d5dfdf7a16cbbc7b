// Every backend against the known answers, the plain one, and itself with other requests in the batch.
#include "kernels/backend.h"

#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <string>

#include "tests/support/golden.h"
#include "tests/support/requests.h"

namespace nsa::metadata::kernels {
namespace {

using testing::Arrays;
using testing::ExpandTogether;
using testing::GoldenCase;
using testing::GoldenCases;
using testing::RandomRequest;
using testing::TestRequest;

constexpr int64_t kMaxSequences = 70'000;

std::unique_ptr<Backend> Create(BackendKind kind) {
  return kind == BackendKind::kCpu ? CreateCpuBackend() : CreateReferenceBackend();
}

class BackendTest : public ::testing::TestWithParam<BackendKind> {
 protected:
  std::unique_ptr<Backend> backend_ = Create(GetParam());
  std::unique_ptr<Lane> lane_ = *backend_->CreateLane(kMaxSequences);
};

TEST_P(BackendTest, GivesEveryKnownAnswer) {
  for (const GoldenCase& golden : GoldenCases()) {
    TestRequest request{.spec = {.nsa_index_topk = golden.nsa_index_topk, .mode = golden.mode, .outputs = {}},
                        .extend_seq_lens = golden.extend_seq_lens,
                        .seq_lens = golden.seq_lens};
    for (Output output : kAllOutputs) {
      if (golden.expected[static_cast<size_t>(output)]) request.spec.outputs.Add(output);
    }
    const Arrays got = ExpandTogether(*lane_, {request}).front();
    for (Output output : kAllOutputs) {
      const auto& want = golden.expected[static_cast<size_t>(output)];
      if (!want) continue;
      EXPECT_EQ(got[static_cast<size_t>(output)], *want) << golden.name << ": " << OutputName(output);
    }
  }
}

TEST_P(BackendTest, AgreesWithTheReferenceOnRandomBatches) {
  const std::unique_ptr<Backend> reference = CreateReferenceBackend();
  const std::unique_ptr<Lane> plain = *reference->CreateLane(kMaxSequences);
  std::mt19937_64 random(20260101);
  for (int i = 0; i < 10'000; ++i) {
    std::vector<TestRequest> requests;
    for (size_t n = 1 + random() % 4; n > 0; --n) requests.push_back(RandomRequest(random));
    ASSERT_EQ(ExpandTogether(*lane_, requests), ExpandTogether(*plain, requests)) << "batch " << i;
  }
}

TEST_P(BackendTest, BatchingChangesNoByteOfAnAnswer) {
  std::mt19937_64 random(7);
  std::vector<TestRequest> requests;
  for (int i = 0; i < 300; ++i) requests.push_back(RandomRequest(random));
  const std::vector<Arrays> together = ExpandTogether(*lane_, requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_EQ(ExpandTogether(*lane_, {requests[i]}).front(), together[i]) << "request " << i;
  }
}

TEST_P(BackendTest, ComputesNothingThatWasNotAsked) {
  TestRequest request{.spec = {.nsa_index_topk = 4, .mode = SequenceMode::kCausal, .outputs = OutputSet::All()},
                      .extend_seq_lens = {3, 2},
                      .seq_lens = {10, 4}};
  for (Output output : kAllOutputs) {
    // The others have null pointers: touching one would end the program.
    request.spec.outputs = {output};
    EXPECT_FALSE(ExpandTogether(*lane_, {request}).front()[static_cast<size_t>(output)].empty());
  }
}

TEST_P(BackendTest, RefusesABatchOverItsLanesRoom) {
  const std::unique_ptr<Lane> small = *backend_->CreateLane(3);
  const std::vector<int32_t> two = {1, 1};
  EXPECT_TRUE(small->batch().Add({}, two, two, 2, {}));
  EXPECT_FALSE(small->batch().Add({}, two, two, 2, {}));
  EXPECT_EQ(small->batch().num_sequences(), 2);
  EXPECT_EQ(small->batch().requests().size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(Backends, BackendTest, ::testing::Values(BackendKind::kCpu, BackendKind::kReference),
                         [](const auto& info) { return std::string(BackendName(info.param)); });

}  // namespace
}  // namespace nsa::metadata::kernels
