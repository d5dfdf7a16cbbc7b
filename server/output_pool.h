// The memory that replies are computed in and sent from: fixed blocks, counted whole, so that what callers ask for
// never passes a budget.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "grpcpp/support/slice.h"
#include "kernels/backend.h"
#include "server/account.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

class OutputPool;

// Neighbouring blocks of the pool, for one request. The permit to produce its output: it is taken at admission and
// travels with the task. Its blocks are back in the pool when it and every slice made of it are gone. Movable; empty
// when default-constructed.
class OutputPermit {
 public:
  OutputPermit() = default;
  OutputPermit(OutputPermit&& other) noexcept : run_(std::exchange(other.run_, nullptr)) {}
  OutputPermit& operator=(OutputPermit&& other) noexcept {
    std::swap(run_, other.run_);
    return *this;
  }
  ~OutputPermit();

  explicit operator bool() const { return run_ != nullptr; }
  // 64-byte aligned at least.
  uint8_t* data() const;

  // Whom the blocks are charged to.
  Account account() const;

  // A slice of the blocks, not copied: it holds them until gRPC has sent it.
  grpc::Slice Slice(size_t offset, size_t bytes) const;

 private:
  friend class OutputPool;
  struct Run;
  explicit OutputPermit(Run* run) : run_(run) {}
  static void Unref(void* run);

  Run* run_ = nullptr;
};

// Thread-safe. Held by shared_ptr: blocks that gRPC still sends keep it alive.
class OutputPool : public std::enable_shared_from_this<OutputPool> {
 public:
  static constexpr size_t kBlockBytes = 64 * 1024;

  struct Options {
    // As large as the memory, committed as it is touched.
    std::optional<kernels::HostBuffer> spare;
    // The part of the blocks that one account may have while more than half of them are in use.
    double caller_share = 1;
  };

  // Cuts `memory` into blocks. INVALID_ARGUMENT when it is no whole number of them.
  static absl::StatusOr<std::shared_ptr<OutputPool>> Create(kernels::HostBuffer memory, Options options);
  static absl::StatusOr<std::shared_ptr<OutputPool>> Create(kernels::HostBuffer memory) {
    return Create(std::move(memory), Options());
  }
  ~OutputPool();

  // Neighbouring blocks for `bytes`, charged to `account`; empty when the budget, or the account's share of it, has
  // none.
  OutputPermit Reserve(size_t bytes, Account account = kNoAccount);
  // Whether `bytes` more would pass the account's share, though not the budget.
  bool OverShare(size_t bytes, Account account) const;

  // Hands out no block of the memory any more, but the spare's, without which nothing happens: a device that failed may
  // still write there. Idempotent.
  void LeaveMemory();
  // Gives `permit`, of which no slice was made, as many other blocks, of the memory that is handed out now. Empties it
  // when there are not so many next to each other.
  void Renew(OutputPermit& permit);

  // Whether fewer than a quarter of the blocks are free: then replies are better copied out, so that slow readers can't
  // hold the blocks that lanes need.
  bool scarce() const { return in_use_.load(std::memory_order_relaxed) * 4 > num_blocks_ * 3; }

  // Whether more than three quarters of the budget are in use, copies included: then callers are refused, or soon will
  // be.
  bool nearly_used() const { return blocks_in_use() * 4 > num_blocks_ * 3; }

  // The parts, one after another, in memory of their own, which counts in the budget, and is charged to `account`,
  // until gRPC has sent it. Nothing when the budget has no room for both the parts and their copy.
  std::optional<grpc::Slice> CopyToHeap(std::span<const grpc::Slice> parts, Account account);

  size_t blocks() const { return num_blocks_; }
  // Whole blocks in use, those that heap copies count for included.
  size_t blocks_in_use() const;
  // The most that were ever in use.
  size_t blocks_high_water() const { return high_water_.load(std::memory_order_relaxed); }

 private:
  friend class OutputPermit;
  // Memory that is cut into blocks.
  struct Region {
    explicit Region(kernels::HostBuffer buffer);
    kernels::HostBuffer memory;
    std::unique_ptr<OutputPermit::Run[]> runs;  // [num_blocks]: the run that begins at a block
    std::vector<uint64_t> free;                 // a bit a block, set when it is free
  };

  OutputPool(kernels::HostBuffer memory, Options options);

  // `room`: bytes of the blocks that the output doesn't need.
  OutputPermit Take(size_t count, Account account, size_t room) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  size_t FindOne() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  size_t FindRun(size_t count) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void Mark(Region& region, size_t first, size_t count, bool free);
  bool PassesShare(size_t count, Account account) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GiveBack(OutputPermit::Run* run);
  void Release(OutputPermit::Run& run) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void NoteHighWater() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static void FreeHeapCopy(void* copy);

  const size_t num_blocks_;
  const size_t share_;  // of the blocks
  // Written under mutex_, read without it.
  std::atomic<size_t> in_use_{0};  // blocks
  std::atomic<size_t> heap_bytes_{0};
  std::atomic<size_t> high_water_{0};

  mutable Mutex mutex_;
  // The memory, and its spare.
  std::vector<Region> regions_ ABSL_GUARDED_BY(mutex_);
  // Blocks are handed out of this one.
  size_t region_ ABSL_GUARDED_BY(mutex_) = 0;
  std::vector<uint32_t> blocks_of_ ABSL_GUARDED_BY(mutex_);  // [kNumAccounts]
};

}  // namespace nsa::metadata::server
