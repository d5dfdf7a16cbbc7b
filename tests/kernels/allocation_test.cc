// What a lane does once it is made, it does in memory that it has.

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "kernels/cuda/cuda_backend.h"
#include "tests/support/requests.h"

namespace {

std::atomic<int64_t> allocations{0};

void* Counted(size_t bytes) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(bytes)) return memory;
  throw std::bad_alloc();
}

}  // namespace

// Not inlined: GCC would warn that what one of them returns goes to free.
#define NOT_INLINED __attribute__((noinline))
NOT_INLINED void* operator new(size_t bytes) { return Counted(bytes); }
NOT_INLINED void* operator new[](size_t bytes) { return Counted(bytes); }
NOT_INLINED void* operator new(size_t bytes, std::align_val_t alignment) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  const auto unit = static_cast<size_t>(alignment);
  if (void* memory = std::aligned_alloc(unit, (bytes + unit - 1) / unit * unit)) return memory;
  throw std::bad_alloc();
}
NOT_INLINED void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
NOT_INLINED void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }
NOT_INLINED void operator delete(void* memory) noexcept { std::free(memory); }
NOT_INLINED void operator delete[](void* memory) noexcept { std::free(memory); }
NOT_INLINED void operator delete(void* memory, size_t) noexcept { std::free(memory); }
NOT_INLINED void operator delete[](void* memory, size_t) noexcept { std::free(memory); }

namespace nsa::metadata::kernels {
namespace {

struct Subject {
  const char* name;
  absl::StatusOr<std::unique_ptr<Backend>> (*create)();
};

void PrintTo(const Subject& subject, std::ostream* out) { *out << subject.name; }

const Subject kSubjects[] = {
    {"reference", [] { return absl::StatusOr<std::unique_ptr<Backend>>(CreateReferenceBackend()); }},
    {"cpu", [] { return absl::StatusOr<std::unique_ptr<Backend>>(CreateCpuBackend()); }},
    {"cuda", [] { return CreateCudaBackend({}); }},
};

class AllocationTest : public ::testing::TestWithParam<Subject> {};

TEST_P(AllocationTest, ALaneAllocatesNothingFromItsFirstBatchOn) {
  const absl::StatusOr<std::unique_ptr<Backend>> backend = GetParam().create();
  if (!backend.ok()) GTEST_SKIP() << backend.status().message();
  // Batches of one request and of many, of lengths that go with the launch and of more.
  std::mt19937_64 random(3);
  std::vector<testing::TestRequest> requests;
  for (int i = 0; i < 200; ++i) requests.push_back(testing::RandomRequest(random, i % 10 == 0 ? 2'000 : 20));
  HostBuffer output = *(*backend)->AllocateOutput(64 << 20);
  const std::unique_ptr<Lane> lane = *(*backend)->CreateLane({.max_sequences = 100'000, .max_requests = 1'000});

  const int64_t before = allocations.load();
  for (size_t begin = 0; begin < requests.size(); begin += 1 + begin % 7) {
    lane->batch().Clear();
    auto* out = reinterpret_cast<int32_t*>(output.data());
    for (size_t i = begin; i < std::min(begin + 1 + begin % 7, requests.size()); ++i) {
      const testing::TestRequest& request = requests[i];
      OutputPointers pointers = {};
      request.spec.outputs.ForEach([&](Output which) {
        pointers[static_cast<size_t>(which)] = out;
        out += OutputLength(which, static_cast<int64_t>(request.seq_lens.size()), request.total_tokens());
      });
      ASSERT_TRUE(
          lane->batch().Add(request.spec, request.extend_seq_lens, request.seq_lens, request.total_tokens(), pointers));
    }
    ASSERT_TRUE(lane->Expand().ok());
  }
  EXPECT_EQ(allocations.load() - before, 0);
}

TEST(AllocationCounterTest, Counts) {
  const int64_t before = allocations.load();
  const auto value = std::make_unique<std::string>(1'000, 'x');
  EXPECT_EQ(allocations.load() - before, 2) << value->size();
  struct alignas(64) Aligned {
    char bytes[64];
  };
  const auto aligned = std::make_unique<Aligned>();
  EXPECT_EQ(allocations.load() - before, 3) << aligned->bytes[0];
}

INSTANTIATE_TEST_SUITE_P(Backends, AllocationTest, ::testing::ValuesIn(kSubjects),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace nsa::metadata::kernels
