// The public launchers against the reference, on a device.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kernels/cuda/draft_extend_metadata.h"
#include "kernels/cuda/handles.h"
#include "kernels/cuda/launch.h"
#include "tests/support/golden.h"
#include "tests/support/requests.h"

namespace nsa::metadata::kernels::cuda {
namespace {

using testing::Arrays;
using testing::TestRequest;

using testing::kMarker;

#define ASSERT_CUDA_OK(call) ASSERT_EQ(cudaSuccess, (call)) << cudaGetErrorString(cudaGetLastError())

// An array on the device.
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<int32_t>& values) : size_(values.size()) {
    void* memory = nullptr;
    EXPECT_EQ(cudaMalloc(&memory, std::max<size_t>(size_, 1) * sizeof(int32_t)), cudaSuccess);
    memory_.reset(memory);
    EXPECT_EQ(cudaMemcpy(memory, values.data(), size_ * sizeof(int32_t), cudaMemcpyHostToDevice), cudaSuccess);
  }
  int32_t* data() const { return static_cast<int32_t*>(memory_.get()); }
  std::vector<int32_t> Values() const {
    std::vector<int32_t> values(size_);
    EXPECT_EQ(cudaMemcpy(values.data(), memory_.get(), size_ * sizeof(int32_t), cudaMemcpyDeviceToHost), cudaSuccess);
    return values;
  }

 private:
  size_t size_;
  DeviceMemory memory_;
};

using Launch = cudaError_t (*)(const DraftExtendMetadata&, cudaStream_t, FillWorkspace&, int64_t*);
struct Launcher {
  const char* name;
  Launch launch;
};
void PrintTo(const Launcher& launcher, std::ostream* out) { *out << launcher.name; }

template <Kernel kernel>
cudaError_t By(const DraftExtendMetadata& metadata, cudaStream_t stream, FillWorkspace& workspace,
               int64_t* total_tokens) {
  return FillDraftExtendMetadata(metadata, kernel, stream, workspace, total_tokens);
}

template <KernelChoice choice>
cudaError_t Adaptive(const DraftExtendMetadata& metadata, cudaStream_t stream, FillWorkspace& workspace,
                     int64_t* total_tokens) {
  return FillDraftExtendMetadataAdaptive(metadata, stream, workspace, total_tokens, {.choice = choice});
}

const Launcher kLaunchers[] = {
    {"linear", &By<Kernel::kLinear>},
    {"binary", &By<Kernel::kBinary>},
    {"rows", &By<Kernel::kRows>},
    {"tile", &By<Kernel::kTile>},
    {"threshold", &Adaptive<KernelChoice::kThreshold>},
    {"adaptive", &Adaptive<KernelChoice::kAdaptive>},
};

// The request with sequences of no length behind its own, so that it takes another way to its sums.
TestRequest Padded(TestRequest request, size_t num_sequences) {
  request.extend_seq_lens.resize(num_sequences, 0);
  request.seq_lens.resize(num_sequences, 0);
  return request;
}
// Scanned by a warp, by a block, by a block in more memory, and by several, a sequence a thread or more.
constexpr size_t kWays[] = {8, 33, 1'025, 4'097, 16'385};

class DeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    int devices = 0;
    const cudaError_t error = cudaGetDeviceCount(&devices);
    if (error != cudaSuccess || devices == 0) GTEST_SKIP() << "no CUDA device: " << cudaGetErrorString(error);
    cudaStream_t stream = nullptr;
    ASSERT_CUDA_OK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    stream_.reset(stream);
  }

  Stream stream_;
};

class KernelsTest : public DeviceTest, public ::testing::WithParamInterface<Kernel> {};

class LaunchersTest : public DeviceTest, public ::testing::WithParamInterface<Launcher> {
 protected:
  // Expands into marked arrays with room for `capacity` tokens and as much again behind; fails when anything behind is
  // written.
  void Run(const TestRequest& request, int64_t capacity, Arrays* arrays, int64_t* total_tokens) {
    const int64_t num_sequences = static_cast<int64_t>(request.seq_lens.size());
    const DeviceArray q(request.extend_seq_lens);
    const DeviceArray s(request.seq_lens);
    std::vector<std::unique_ptr<DeviceArray>> outputs;
    std::array<size_t, kNumOutputs> lengths = {};
    DraftExtendMetadata metadata{.extend_seq_lens = q.data(),
                                 .seq_lens = s.data(),
                                 .num_sequences = num_sequences,
                                 .nsa_index_topk = request.spec.nsa_index_topk,
                                 .mode = request.spec.mode,
                                 .out = {},
                                 .capacity = capacity};
    for (Output output : kAllOutputs) {
      const size_t i = static_cast<size_t>(output);
      outputs.push_back(nullptr);
      if (!request.spec.outputs.Has(output)) continue;
      lengths[i] = OutputLength(output, num_sequences, capacity);
      outputs[i] = std::make_unique<DeviceArray>(std::vector<int32_t>(begin_ + 2 * lengths[i] + 64, kMarker));
      metadata.out[i] = outputs[i]->data() + begin_;
    }
    ASSERT_CUDA_OK(GetParam().launch(metadata, stream_.get(), workspace_, total_tokens));
    for (size_t i = 0; i < kNumOutputs; ++i) {
      if (outputs[i] == nullptr) continue;
      std::vector<int32_t> values = outputs[i]->Values();
      values.erase(values.begin(), values.begin() + begin_);
      ASSERT_TRUE(std::all_of(values.begin() + lengths[i], values.end(), [](int32_t v) { return v == kMarker; }))
          << OutputName(static_cast<Output>(i)) << " was written past its capacity";
      values.resize(lengths[i]);
      (*arrays)[i] = std::move(values);
    }
  }

  void ExpectEqualToReference(const TestRequest& request, const std::string& what) {
    const Arrays want = testing::ReferenceArrays(request);
    Arrays got;
    int64_t total_tokens = -1;
    Run(request, request.total_tokens(), &got, &total_tokens);
    ASSERT_EQ(total_tokens, request.total_tokens()) << what;
    ASSERT_EQ(got, want) << what;
  }

  // The same without a message of millions of values.
  void ExpectEqualToReferenceAtLength(const TestRequest& request) {
    Arrays got;
    int64_t total_tokens = -1;
    Run(request, request.total_tokens(), &got, &total_tokens);
    ASSERT_TRUE(got == testing::ReferenceArrays(request))
        << request.seq_lens.size() << " sequences of " << request.total_tokens() << " tokens";
    EXPECT_EQ(total_tokens, request.total_tokens());
  }

  // Where in its memory each array begins, in values: past 0 none is aligned for a wide store.
  int64_t begin_ = 0;
  FillWorkspace workspace_;
};

TEST_P(LaunchersTest, GiveEveryKnownAnswer) {
  for (const testing::GoldenCase& golden : testing::GoldenCases()) {
    TestRequest request{.spec = {.nsa_index_topk = golden.nsa_index_topk, .mode = golden.mode, .outputs = {}},
                        .extend_seq_lens = golden.extend_seq_lens,
                        .seq_lens = golden.seq_lens};
    Arrays want;
    for (Output output : kAllOutputs) {
      const auto& expected = golden.expected[static_cast<size_t>(output)];
      if (!expected) continue;
      request.spec.outputs.Add(output);
      want[static_cast<size_t>(output)] = *expected;
    }
    Arrays got;
    int64_t total_tokens = -1;
    Run(request, request.total_tokens(), &got, &total_tokens);
    ASSERT_EQ(got, want) << golden.name;
    ASSERT_EQ(total_tokens, request.total_tokens()) << golden.name;
  }
}

TEST_P(LaunchersTest, AgreeWithTheReferenceOnRandomRequests) {
  std::mt19937_64 random(11);
  for (int i = 0; i < 10'000; ++i) {
    ExpectEqualToReference(testing::RandomRequest(random, i % 100 == 0 ? 2'000 : 40), "request " + std::to_string(i));
  }
}

// As many as one warp scans, one block, one in more memory, several, and more than 64 chunks of a block's.
TEST_P(LaunchersTest, AgreeWithTheReferenceOnManySequences) {
  std::mt19937_64 random(13);
  for (size_t num_sequences : {31, 32, 33, 1'023, 1'024, 1'025, 3'000, 3'072, 3'073, 4'096, 4'097, 70'000}) {
    for (const OutputSet outputs : {OutputSet{Output::kSeqlensExpanded, Output::kNsaCacheSeqlens}, OutputSet::All()}) {
      const TestRequest request = testing::ShortSequences(random, num_sequences, outputs);
      ExpectEqualToReference(request, std::to_string(num_sequences) + " sequences");
    }
  }
}

// So many that a warp takes several steps, over sequences that begin anywhere in them; scanned in every way.
TEST_P(LaunchersTest, AgreeWithTheReferenceOnManyTokens) {
  std::mt19937_64 random(14);
  for (const OutputSet outputs : {OutputSet{Output::kSeqlensExpanded, Output::kNsaCacheSeqlens}, OutputSet::All()}) {
    std::vector<TestRequest> requests;
    for (int64_t tokens : {50'000, 700'000, 2'200'000}) {
      requests.push_back(testing::MixedSequences(random, tokens, outputs));
    }
    for (size_t num_sequences : {8, 300, 2'000}) {
      for (int64_t tokens : {400'000, 2'200'000}) {
        requests.push_back(
            testing::SequencesOf(random, num_sequences, tokens / static_cast<int64_t>(num_sequences), outputs));
      }
    }
    for (const TestRequest& request : requests) {
      ExpectEqualToReferenceAtLength(request);
    }
  }
}

// So many that not all of the card's warps have theirs at once.
TEST_P(LaunchersTest, AgreeWithTheReferenceOnMoreTokensThanACardTakesAtOnce) {
  std::mt19937_64 random(15);
  for (const OutputSet outputs : {OutputSet{Output::kSeqlensExpanded, Output::kNsaCacheSeqlens},
                                  OutputSet{Output::kSeqlensExpanded, Output::kNsaCuSeqlensK}}) {
    ExpectEqualToReferenceAtLength(testing::MixedSequences(random, 8'600'000, outputs));
  }
}

// In the middle of many tokens, and where what begins after them is past int32's end.
TEST_P(LaunchersTest, WriteNothingPastACapacityOfManyTokens) {
  std::mt19937_64 random(16);
  const OutputSet outputs = {Output::kSeqlensExpanded, Output::kNsaCacheSeqlens};
  for (int64_t capacity : {2'200'000, 8'500'000}) {
    TestRequest request = testing::MixedSequences(random, capacity + 50'000, outputs);
    Arrays want = testing::ReferenceArrays(request);
    for (size_t i : {size_t{0}, size_t{1}}) want[i].resize(static_cast<size_t>(capacity));
    for (int more = 0; more < 3; ++more) {
      request.extend_seq_lens.push_back(INT32_MAX);
      request.seq_lens.push_back(INT32_MAX);
    }
    Arrays got;
    int64_t total_tokens = -1;
    Run(request, capacity, &got, &total_tokens);
    EXPECT_EQ(total_tokens, request.total_tokens());
    EXPECT_TRUE(got == want) << capacity << " tokens";
  }
}

TEST_P(LaunchersTest, WriteNothingPastTheCapacityAndSayHowMuchWasNeeded) {
  const TestRequest request{.spec = {.nsa_index_topk = 4, .mode = SequenceMode::kCausal, .outputs = OutputSet::All()},
                            .extend_seq_lens = {300, 0, 500},
                            .seq_lens = {400, 7, 600}};
  for (size_t num_sequences : kWays) {
    const TestRequest padded = Padded(request, num_sequences);
    for (int64_t capacity : {0, 1, 299, 300, 301, 700}) {
      Arrays got;
      int64_t total_tokens = -1;
      Run(padded, capacity, &got, &total_tokens);
      EXPECT_EQ(total_tokens, 800);
      Arrays want = testing::ReferenceArrays(padded);
      for (size_t i = 0; i < kNumOutputs; ++i) want[i].resize(got[i].size());
      EXPECT_EQ(got, want) << "capacity " << capacity << ", " << num_sequences << " sequences";
    }
  }
}

TEST_P(LaunchersTest, TakeANegativeLengthAsZero) {
  TestRequest request{.spec = {.nsa_index_topk = 4, .mode = SequenceMode::kCausal, .outputs = OutputSet::All()},
                      .extend_seq_lens = {3, -5, 2},
                      .seq_lens = {10, 7, -4}};
  for (size_t num_sequences : kWays) {
    TestRequest padded = Padded(request, num_sequences);
    Arrays got;
    int64_t total_tokens = -1;
    Run(padded, 5, &got, &total_tokens);
    EXPECT_EQ(total_tokens, 5);
    padded.extend_seq_lens[1] = 0;
    padded.seq_lens[2] = 0;
    EXPECT_EQ(got, testing::ReferenceArrays(padded)) << num_sequences << " sequences";
  }
}

TEST_P(LaunchersTest, WriteArraysThatBeginAnywhere) {
  std::mt19937_64 random(19);
  for (begin_ = 1; begin_ < 4; ++begin_) {
    for (int i = 0; i < 20; ++i) ExpectEqualToReference(testing::RandomRequest(random), "request " + std::to_string(i));
  }
}

TEST_P(LaunchersTest, TakeMoreTokensThanCapacityWithoutOverflow) {
  const TestRequest request{
      .spec = {.nsa_index_topk = 1, .mode = SequenceMode::kRepeat, .outputs = {Output::kSeqlensExpanded}},
      .extend_seq_lens = std::vector<int32_t>(8, INT32_MAX),
      .seq_lens = {1, 2, 3, 4, 5, 6, 7, 8}};
  for (size_t num_sequences : kWays) {
    Arrays got;
    int64_t total_tokens = -1;
    Run(Padded(request, num_sequences), 1'000, &got, &total_tokens);
    EXPECT_EQ(total_tokens, int64_t{8} * INT32_MAX);
    EXPECT_EQ(got[0], std::vector<int32_t>(1'000, 1)) << num_sequences << " sequences";
  }
}

TEST_P(LaunchersTest, RefuseArgumentsThatMakeNoSense) {
  int64_t total_tokens = -7;
  const auto launched = [&](const DraftExtendMetadata& metadata) {
    return GetParam().launch(metadata, stream_.get(), workspace_, &total_tokens);
  };
  EXPECT_EQ(launched({.num_sequences = 1}), cudaErrorInvalidValue) << "no lengths";
  EXPECT_EQ(launched({.num_sequences = -1}), cudaErrorInvalidValue) << "a negative count";
  EXPECT_EQ(launched({.capacity = (1 << 29) + 1}), cudaErrorInvalidValue) << "more tokens than it takes";
  EXPECT_EQ(total_tokens, -7);
}

// More than a waiting thread looks at, or than it looks for.
TEST_P(LaunchersTest, WriteAsManyTokensAsTakeManyBlocks) {
  constexpr int32_t kTokens = 1 << 21;
  const TestRequest request{.spec = {.nsa_index_topk = 500,
                                     .mode = SequenceMode::kCausal,
                                     .outputs = {Output::kSeqlensExpanded, Output::kNsaCuSeqlensK}},
                            .extend_seq_lens = {3, kTokens},
                            .seq_lens = {9, kTokens + 17}};
  Arrays got;
  int64_t total_tokens = -1;
  Run(request, kTokens + 3, &got, &total_tokens);
  EXPECT_EQ(total_tokens, kTokens + 3);
  EXPECT_TRUE(got == testing::ReferenceArrays(request));
}

TEST_F(DeviceTest, LaunchesThatShareAWorkspaceFollowEachOther) {
  constexpr int kTimes = 20;
  std::mt19937_64 random(23);
  TestRequest requests[] = {Padded(testing::RandomRequest(random), 70'000),
                            Padded(testing::RandomRequest(random), 5'000)};
  const DeviceArray workspace(std::vector<int32_t>(DraftExtendWorkspaceBytes(70'000) / sizeof(int32_t)));
  std::vector<std::unique_ptr<DeviceArray>> memory;
  const auto keep = [&memory](const std::vector<int32_t>& values) {
    return memory.emplace_back(std::make_unique<DeviceArray>(values))->data();
  };
  DraftExtendMetadata metadata[2];
  std::vector<int32_t> want[2];
  for (int r = 0; r < 2; ++r) {
    TestRequest& request = requests[r];
    metadata[r] = {.extend_seq_lens = keep(request.extend_seq_lens),
                   .seq_lens = keep(request.seq_lens),
                   .num_sequences = static_cast<int64_t>(request.seq_lens.size()),
                   .nsa_index_topk = std::max(request.spec.nsa_index_topk, 1),
                   .mode = request.spec.mode,
                   .out = {},
                   .capacity = request.total_tokens(),
                   .workspace = workspace.data()};
    request.spec.outputs = {Output::kSeqlensExpanded};
    want[r] = testing::ReferenceArrays(request)[0];
    want[r].push_back(kMarker);
  }
  // Each has arrays of its own, so that none mends what another broke.
  std::vector<const DeviceArray*> got[2];
  for (int i = 0; i < kTimes; ++i) {
    for (int r = 0; r < 2; ++r) {
      metadata[r].out[0] = keep(std::vector<int32_t>(want[r].size(), kMarker));
      got[r].push_back(memory.back().get());
    }
  }
  for (int i = 0; i < kTimes; ++i) {
    for (int r = 0; r < 2; ++r) {
      metadata[r].out[0] = got[r][i]->data();
      ASSERT_CUDA_OK(LaunchDraftExtendMetadata(metadata[r], Kernel::kRows, stream_.get()));
    }
  }
  ASSERT_CUDA_OK(cudaStreamSynchronize(stream_.get()));
  for (int i = 0; i < kTimes; ++i) {
    for (int r = 0; r < 2; ++r) EXPECT_EQ(got[r][i]->Values(), want[r]) << "request " << r << ", launch " << i;
  }
}

TEST_P(KernelsTest, BlocksSetTheirFlagsOnceWhatTheyWriteCanBeSeen) {
  constexpr int64_t kCapacity = 50'000;
  const Kernel kernel = GetParam();
  for (size_t num_sequences : kWays) {
    const int64_t blocks = NumBlocks(kernel, {.num_sequences = static_cast<int32_t>(num_sequences),
                                              .num_requests = 1,
                                              .num_tokens = kCapacity,
                                              .first_two = true});
    // The host's memory, read as it is when the last flag is seen.
    void* memory = nullptr;
    ASSERT_CUDA_OK(cudaHostAlloc(&memory, (blocks + 1) * sizeof(uint64_t), cudaHostAllocMapped));
    const PinnedMemory flags(memory);
    auto* const flag = static_cast<uint64_t*>(memory);
    std::fill(flag, flag + blocks + 1, 0);
    ASSERT_CUDA_OK(cudaHostAlloc(&memory, kCapacity * sizeof(int32_t), cudaHostAllocMapped));
    const PinnedMemory array(memory);
    const std::span<int32_t> expanded(static_cast<int32_t*>(memory), kCapacity);
    const DeviceArray extend_seq_lens(std::vector<int32_t>(num_sequences, 40));
    const DeviceArray ended({0});
    const DeviceArray workspace(
        std::vector<int32_t>(DraftExtendWorkspaceBytes(static_cast<int64_t>(num_sequences)) / sizeof(int32_t)));
    uint64_t value = 7;
    for (bool one_for_all : {false, true, true, false, true}) {
      const auto seq_len = static_cast<int32_t>(++value);
      const DeviceArray seq_lens(std::vector<int32_t>(num_sequences, seq_len));
      std::fill(expanded.begin(), expanded.end(), kMarker);
      std::vector<int32_t> want(40 * std::min<size_t>(num_sequences, kCapacity / 40), seq_len);
      want.resize(kCapacity, kMarker);
      DraftExtendMetadata metadata = {.extend_seq_lens = extend_seq_lens.data(),
                                      .seq_lens = seq_lens.data(),
                                      .num_sequences = static_cast<int64_t>(num_sequences),
                                      .out = {},
                                      .capacity = kCapacity,
                                      .workspace = workspace.data()};
      metadata.out[0] = expanded.data();
      DoneFlags done = {.flags = flag, .value = value};
      if (one_for_all) done.ended = reinterpret_cast<uint32_t*>(ended.data());
      ASSERT_CUDA_OK(LaunchDraftExtendMetadata(metadata, kernel, stream_.get(), done));
      const int64_t count = one_for_all ? 1 : blocks;
      const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(60);
      for (int64_t i = 0; i < count; ++i) {
        while (std::atomic_ref<uint64_t>(flag[i]).load(std::memory_order_acquire) != value) {
          ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "flag " << i << " of " << count;
        }
      }
      // From its end on, which the last block writes.
      const auto wrong = std::mismatch(expanded.rbegin(), expanded.rend(), want.rbegin()).first;
      EXPECT_EQ(wrong, expanded.rend()) << num_sequences << " sequences: " << *wrong << " " << wrong - expanded.rbegin()
                                        << " before the end";
      ASSERT_CUDA_OK(cudaStreamSynchronize(stream_.get()));
      for (int64_t i = count; i <= blocks; ++i) EXPECT_NE(flag[i], value) << "flag " << i << " behind the " << count;
      EXPECT_EQ(ended.Values(), std::vector<int32_t>{0});
    }
  }
}

TEST_F(DeviceTest, WhatMakesNoSenseIsRefusedBeforeAnythingIsLaunched) {
  const DeviceArray lengths(std::vector<int32_t>(2'000, 1));
  const DeviceArray expanded(std::vector<int32_t>(64, kMarker));
  DraftExtendMetadata metadata = {
      .extend_seq_lens = lengths.data(), .seq_lens = lengths.data(), .num_sequences = 4, .out = {}, .capacity = 64};
  metadata.out[0] = expanded.data();
  EXPECT_EQ(LaunchDraftExtendMetadata(metadata, Kernel::kCpu, stream_.get()), cudaErrorInvalidValue) << "the host's";
  metadata.num_sequences = 2'000;
  EXPECT_EQ(LaunchDraftExtendMetadata(metadata, Kernel::kRows, stream_.get()), cudaErrorInvalidValue) << "no workspace";
  ASSERT_CUDA_OK(cudaStreamSynchronize(stream_.get()));
  EXPECT_EQ(expanded.Values(), std::vector<int32_t>(64, kMarker));
}

INSTANTIATE_TEST_SUITE_P(Kernels, KernelsTest,
                         ::testing::Values(Kernel::kLinear, Kernel::kBinary, Kernel::kRows, Kernel::kTile),
                         [](const auto& info) { return std::string(KernelName(info.param)); });
INSTANTIATE_TEST_SUITE_P(Kernels, LaunchersTest, ::testing::ValuesIn(kLaunchers),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace nsa::metadata::kernels::cuda
