// Every backend against the known answers, the plain one, and itself with other requests in the batch.
#include "kernels/backend.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <random>
#include <string>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/launch_plan.h"
#include "tests/support/golden.h"
#include "tests/support/requests.h"

namespace nsa::metadata::kernels {
namespace {

using testing::Arrays;
using testing::Expander;
using testing::GoldenCase;
using testing::GoldenCases;
using testing::RandomRequest;
using testing::TestRequest;

struct Variant {
  const char* name;
  absl::StatusOr<std::unique_ptr<Backend>> (*create)();
};

void PrintTo(const Variant& variant, std::ostream* out) { *out << variant.name; }

// compute-sanitizer makes a batch take seconds.
constexpr std::chrono::minutes kTimeout(1);

template <KernelChoice choice>
absl::StatusOr<std::unique_ptr<Backend>> CreateCuda() {
  return CreateCudaBackend({.plan = {.choice = choice}, .timeout = kTimeout});
}

const Variant kVariants[] = {
    {"reference", [] { return absl::StatusOr<std::unique_ptr<Backend>>(CreateReferenceBackend()); }},
    {"cpu", [] { return absl::StatusOr<std::unique_ptr<Backend>>(CreateCpuBackend()); }},
    {"cuda_linear", CreateCuda<KernelChoice::kLinear>},
    {"cuda_binary", CreateCuda<KernelChoice::kBinary>},
    {"cuda_rows", CreateCuda<KernelChoice::kRows>},
    {"cuda_tile", CreateCuda<KernelChoice::kTile>},
    {"cuda_copied", [] { return CreateCudaBackend({.plan = {.input = Input::kCopied}, .timeout = kTimeout}); }},
    {"cuda_with_small_ones_on_the_cpu",
     [] { return CreateCudaBackend({.cpu_below_tokens = 60, .timeout = kTimeout}); }},
    {"cuda_threshold", CreateCuda<KernelChoice::kThreshold>},
    {"cuda_adaptive", CreateCuda<KernelChoice::kAdaptive>},
};

class BackendTest : public ::testing::TestWithParam<Variant> {
 protected:
  void SetUp() override {
    absl::StatusOr<std::unique_ptr<Backend>> backend = GetParam().create();
    if (!backend.ok()) GTEST_SKIP() << backend.status().message();
    backend_ = *std::move(backend);
    expander_ = std::make_unique<Expander>(*backend_);
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Expander> expander_;
};

TEST_P(BackendTest, GivesEveryKnownAnswer) {
  for (const GoldenCase& golden : GoldenCases()) {
    TestRequest request{.spec = {.nsa_index_topk = golden.nsa_index_topk, .mode = golden.mode, .outputs = {}},
                        .extend_seq_lens = golden.extend_seq_lens,
                        .seq_lens = golden.seq_lens};
    for (Output output : kAllOutputs) {
      if (golden.expected[static_cast<size_t>(output)]) request.spec.outputs.Add(output);
    }
    const Arrays got = expander_->Alone(request);
    for (Output output : kAllOutputs) {
      const auto& want = golden.expected[static_cast<size_t>(output)];
      if (!want) continue;
      ASSERT_EQ(got[static_cast<size_t>(output)], *want) << golden.name << ": " << OutputName(output);
    }
  }
}

TEST_P(BackendTest, AgreesWithTheReferenceOnRandomBatches) {
  std::mt19937_64 random(20260101);
  for (int i = 0; i < 10'000; ++i) {
    std::vector<TestRequest> requests;
    std::vector<Arrays> want;
    for (size_t n = 1 + random() % 4; n > 0; --n) {
      requests.push_back(RandomRequest(random));
      want.push_back(testing::ReferenceArrays(requests.back()));
    }
    ASSERT_EQ(expander_->Together(requests), want) << "batch " << i;
  }
}

TEST_P(BackendTest, AgreesWithTheReferenceOnLargeBatches) {
  std::mt19937_64 random(4);
  for (int i = 0; i < 20; ++i) {
    std::vector<TestRequest> requests;
    std::vector<Arrays> want;
    for (int n = 0; n < 5; ++n) {
      requests.push_back(RandomRequest(random, 3'000));
      want.push_back(testing::ReferenceArrays(requests.back()));
    }
    ASSERT_EQ(expander_->Together(requests), want) << "batch " << i;
  }
}

// Across the sizes that a launch's parameters come in, and past the largest.
TEST_P(BackendTest, AgreesWithTheReferenceOnAnyNumberOfSequences) {
  std::mt19937_64 random(17);
  for (const OutputSet outputs : {OutputSet{Output::kSeqlensExpanded, Output::kNsaCacheSeqlens}, OutputSet::All()}) {
    for (size_t num_sequences : {1,   32,  33,  65,    66,    72,    73,    145,   146,   266,  267,
                                 533, 534, 535, 1'024, 1'025, 1'043, 1'044, 3'000, 4'096, 4'097}) {
      const TestRequest request = testing::ShortSequences(random, num_sequences, outputs);
      ASSERT_EQ(expander_->Alone(request), testing::ReferenceArrays(request)) << num_sequences << " sequences";
    }
  }
}

// So many that the scan of the lengths takes each of its blocks several times.
TEST_P(BackendTest, AgreesWithTheReferenceOnManySequences) {
  std::mt19937_64 random(19);
  const TestRequest request = testing::ShortSequences(random, 70'000, OutputSet::All());
  ASSERT_EQ(expander_->Alone(request), testing::ReferenceArrays(request));
}

// So many that a warp takes several steps, over sequences that begin anywhere in them.
TEST_P(BackendTest, AgreesWithTheReferenceOnManyTokens) {
  std::mt19937_64 random(20);
  for (const OutputSet outputs : {OutputSet{Output::kSeqlensExpanded, Output::kNsaCacheSeqlens}, OutputSet::All()}) {
    for (int64_t tokens : {50'000, 700'000, 2'200'000}) {
      for (int num_requests : {1, 3}) {
        std::vector<TestRequest> requests;
        std::vector<Arrays> want;
        for (int r = 0; r < num_requests; ++r) {
          requests.push_back(testing::MixedSequences(random, tokens / num_requests, outputs));
          want.push_back(testing::ReferenceArrays(requests.back()));
        }
        // Millions of values are no message.
        ASSERT_TRUE(expander_->Together(requests) == want) << tokens << " tokens, " << num_requests << " requests";
      }
    }
    // Of few sequences, which go with the launch.
    for (size_t num_sequences : {8, 100, 500}) {
      for (int64_t tokens : {700'000, 2'200'000}) {
        const TestRequest request =
            testing::SequencesOf(random, num_sequences, tokens / static_cast<int64_t>(num_sequences), outputs);
        ASSERT_TRUE(expander_->Alone(request) == testing::ReferenceArrays(request)) << num_sequences << " sequences";
      }
    }
    const TestRequest lopsided = testing::LopsidedSequences(random, outputs);
    ASSERT_TRUE(expander_->Alone(lopsided) == testing::ReferenceArrays(lopsided));
  }
}

// So many that not all of the card's warps have theirs at once.
TEST_P(BackendTest, AgreesWithTheReferenceOnMoreTokensThanACardTakesAtOnce) {
  std::mt19937_64 random(21);
  for (const OutputSet outputs : {OutputSet{Output::kSeqlensExpanded, Output::kNsaCacheSeqlens},
                                  OutputSet{Output::kSeqlensExpanded, Output::kNsaCuSeqlensK}}) {
    std::vector<TestRequest> requests;
    std::vector<Arrays> want;
    for (int r = 0; r < 3; ++r) {
      requests.push_back(testing::MixedSequences(random, 2'900'000, outputs));
      want.push_back(testing::ReferenceArrays(requests.back()));
    }
    ASSERT_TRUE(expander_->Together(requests) == want);
  }
}

TEST_P(BackendTest, AgreesWithTheReferenceOnAnyNumberOfRequests) {
  std::mt19937_64 random(18);
  for (const OutputSet outputs : {OutputSet{Output::kSeqlensExpanded, Output::kNsaCacheSeqlens}, OutputSet::All()}) {
    for (size_t num_requests : {2, 5, 6, 8, 11, 13, 37, 45, 70, 90}) {
      std::vector<TestRequest> requests;
      std::vector<Arrays> want;
      while (requests.size() < num_requests) {
        requests.push_back(testing::ShortSequences(random, 1 + random() % 4, outputs));
        want.push_back(testing::ReferenceArrays(requests.back()));
      }
      ASSERT_EQ(expander_->Together(requests), want) << num_requests << " requests";
    }
  }
}

TEST_P(BackendTest, BatchingChangesNoByteOfAnAnswer) {
  std::mt19937_64 random(7);
  std::vector<TestRequest> requests;
  for (int i = 0; i < 300; ++i) requests.push_back(RandomRequest(random));
  const std::vector<Arrays> together = expander_->Together(requests);
  for (size_t i = 0; i < requests.size(); ++i) {
    ASSERT_EQ(expander_->Alone(requests[i]), together[i]) << "request " << i;
  }
}

TEST_P(BackendTest, ComputesNothingThatWasNotAsked) {
  TestRequest request{.spec = {.nsa_index_topk = 4, .mode = SequenceMode::kCausal, .outputs = OutputSet::All()},
                      .extend_seq_lens = {3, 2},
                      .seq_lens = {10, 4}};
  for (Output output : kAllOutputs) {
    // The others have null pointers: touching one would end the program, or the device's context.
    request.spec.outputs = {output};
    EXPECT_FALSE(expander_->Alone(request)[static_cast<size_t>(output)].empty());
  }
}

TEST_P(BackendTest, RefusesABatchOverItsLanesRoom) {
  const std::unique_ptr<Lane> small = *backend_->CreateLane({.max_sequences = 3, .max_requests = 2});
  const std::vector<int32_t> one = {1};
  const std::vector<int32_t> two = {1, 1};
  EXPECT_TRUE(small->batch().Add({}, two, two, 2, {}));
  EXPECT_FALSE(small->batch().Add({}, two, two, 2, {})) << "a sequence too many";
  EXPECT_TRUE(small->batch().Add({}, one, one, 1, {}));
  EXPECT_FALSE(small->batch().Add({}, {}, {}, 0, {})) << "a request too many";
  EXPECT_EQ(small->batch().num_sequences(), 3);
  EXPECT_EQ(small->batch().requests().size(), 2u);
}

TEST(CpuBackendTest, SaysWhenThereIsNoMemoryForOutputs) {
  const auto output = CreateCpuBackend()->AllocateOutput(size_t{1} << 50);
  EXPECT_EQ(output.status().code(), absl::StatusCode::kResourceExhausted) << output.status();
}

TEST(CudaBackendTest, LeavesBatchesOfFewerTokensToTheCpuWhenToldTo) {
  const absl::StatusOr<std::unique_ptr<Backend>> backend = CreateCudaBackend({.cpu_below_tokens = 60});
  if (!backend.ok()) GTEST_SKIP() << backend.status().message();
  const std::unique_ptr<Lane> lane = *(*backend)->CreateLane({.max_sequences = 1, .max_requests = 1});
  const HostBuffer output = *(*backend)->AllocateOutput(4096);
  for (const auto& [tokens, by_cpu] : {std::pair(59, true), {60, false}}) {
    const int32_t q = tokens;
    lane->batch().Clear();
    lane->batch().Add({.outputs = {Output::kSeqlensExpanded}}, {&q, 1}, {&q, 1}, tokens,
                      {reinterpret_cast<int32_t*>(output.data())});
    EXPECT_EQ(*lane->Expand() == Kernel::kCpu, by_cpu) << tokens << " tokens";
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, BackendTest, ::testing::ValuesIn(kVariants),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace nsa::metadata::kernels
