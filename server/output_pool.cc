#include "server/output_pool.h"

#include <algorithm>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <new>

#include "absl/strings/str_cat.h"
#include "server/tsan.h"

namespace nsa::metadata::server {
namespace {

constexpr size_t kNone = SIZE_MAX;
constexpr size_t kBits = 64;

// What lies before a heap copy's bytes.
struct HeapCopy {
  std::shared_ptr<OutputPool> pool;
  size_t bytes;
  Account account;
  uint8_t* data() { return reinterpret_cast<uint8_t*>(this + 1); }
};

// Where an output lies in its blocks: those of few bytes not all at the begin of one, where they would meet in the same
// few lines of the processor's caches.
size_t OffsetIn(size_t first, size_t room) {
  constexpr size_t kApart = 320;  // an odd number of lines
  constexpr size_t kPlaces = 64;
  return room >= kApart * kPlaces ? first % kPlaces * kApart : 0;
}

size_t BlocksFor(size_t bytes) { return (bytes + OutputPool::kBlockBytes - 1) / OutputPool::kBlockBytes; }

}  // namespace

struct OutputPermit::Run {
  std::shared_ptr<OutputPool> pool;  // set while the run is in use
  OutputPool::Region* region = nullptr;
  uint8_t* data = nullptr;
  size_t first = 0;
  size_t count = 0;
  Account account = kNoAccount;
  std::atomic<uint32_t> references{0};
};

OutputPermit::~OutputPermit() {
  if (run_ != nullptr) Unref(run_);
}

uint8_t* OutputPermit::data() const { return run_->data; }
Account OutputPermit::account() const { return run_->account; }

grpc::Slice OutputPermit::Slice(size_t offset, size_t bytes) const {
  run_->references.fetch_add(1, std::memory_order_relaxed);
  GivenToGrpc(run_);
  return grpc::Slice(data() + offset, bytes, &Unref, run_);
}

void OutputPermit::Unref(void* pointer) {
  TakenFromGrpc(pointer);
  Run* run = static_cast<Run*>(pointer);
  if (run->references.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  const std::shared_ptr<OutputPool> pool = std::move(run->pool);
  pool->GiveBack(run);
}

absl::StatusOr<std::shared_ptr<OutputPool>> OutputPool::Create(kernels::HostBuffer memory, Options options) {
  if (memory.bytes() == 0 || memory.bytes() % kBlockBytes != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("an output pool of ", memory.bytes(), " bytes is not a whole number of blocks of ", kBlockBytes));
  }
  return std::shared_ptr<OutputPool>(new OutputPool(std::move(memory), std::move(options)));
}

OutputPool::Region::Region(kernels::HostBuffer buffer) : memory(std::move(buffer)) {
  const size_t blocks = memory.bytes() / kBlockBytes;
  runs = std::make_unique<OutputPermit::Run[]>(blocks);
  free.resize((blocks + kBits - 1) / kBits);
  Mark(*this, 0, blocks, /*free=*/true);
}

OutputPool::OutputPool(kernels::HostBuffer memory, Options options)
    : num_blocks_(memory.bytes() / kBlockBytes),
      share_(static_cast<size_t>(ShareOf(options.caller_share, static_cast<int64_t>(num_blocks_)))),
      blocks_of_(kNumAccounts) {
  MutexLock lock(&mutex_);
  regions_.reserve(2);  // runs point to theirs
  regions_.emplace_back(std::move(memory));
  if (options.spare) regions_.emplace_back(*std::move(options.spare));
}

OutputPool::~OutputPool() = default;

OutputPermit OutputPool::Reserve(size_t bytes, Account account) {
  const size_t count = std::max<size_t>(BlocksFor(bytes), 1);
  MutexLock lock(&mutex_);
  if (blocks_in_use() + count > num_blocks_ || PassesShare(count, account)) return {};
  return Take(count, account, count * kBlockBytes - bytes);
}

bool OutputPool::OverShare(size_t bytes, Account account) const {
  MutexLock lock(&mutex_);
  const size_t count = std::max<size_t>(BlocksFor(bytes), 1);
  return blocks_in_use() + count <= num_blocks_ && PassesShare(count, account);
}

bool OutputPool::PassesShare(size_t count, Account account) const {
  return account != kNoAccount && blocks_in_use() * 2 > num_blocks_ && blocks_of_[account] + count > share_;
}

OutputPermit OutputPool::Take(size_t count, Account account, size_t room) {
  const size_t first = count == 1 ? FindOne() : FindRun(count);
  if (first == kNone) return {};
  Region& region = regions_[region_];
  Mark(region, first, count, /*free=*/false);
  in_use_.fetch_add(count, std::memory_order_relaxed);
  blocks_of_[account] += static_cast<uint32_t>(count);
  NoteHighWater();
  OutputPermit::Run& run = region.runs[first];
  run.pool = shared_from_this();
  run.region = &region;
  run.data = region.memory.data() + first * kBlockBytes + OffsetIn(first, room);
  run.first = first;
  run.count = count;
  run.account = account;
  run.references.store(1, std::memory_order_relaxed);
  return OutputPermit(&run);
}

void OutputPool::LeaveMemory() {
  MutexLock lock(&mutex_);
  region_ = regions_.size() - 1;
}

void OutputPool::Renew(OutputPermit& permit) {
  OutputPermit::Run* const old = std::exchange(permit.run_, nullptr);
  const std::shared_ptr<OutputPool> pool = std::move(old->pool);
  // In one step, so that nobody else gets the room that it had.
  MutexLock lock(&mutex_);
  Release(*old);
  permit = Take(old->count, old->account, /*room=*/0);
}

std::optional<grpc::Slice> OutputPool::CopyToHeap(std::span<const grpc::Slice> parts, Account account) {
  size_t bytes = 0;
  for (const grpc::Slice& part : parts) bytes += part.size();
  {
    MutexLock lock(&mutex_);
    if (blocks_in_use() + BlocksFor(bytes) > num_blocks_) return std::nullopt;
    heap_bytes_.fetch_add(bytes, std::memory_order_relaxed);
    blocks_of_[account] += static_cast<uint32_t>(BlocksFor(bytes));
    NoteHighWater();
  }
  auto* copy = new (::operator new(sizeof(HeapCopy) + bytes)) HeapCopy{shared_from_this(), bytes, account};
  uint8_t* out = copy->data();
  for (const grpc::Slice& part : parts) out = std::copy(part.begin(), part.end(), out);
  GivenToGrpc(copy);
  return grpc::Slice(copy->data(), bytes, &FreeHeapCopy, copy);
}

void OutputPool::FreeHeapCopy(void* pointer) {
  TakenFromGrpc(pointer);
  auto* copy = static_cast<HeapCopy*>(pointer);
  {
    MutexLock lock(&copy->pool->mutex_);
    copy->pool->heap_bytes_.fetch_sub(copy->bytes, std::memory_order_relaxed);
    copy->pool->blocks_of_[copy->account] -= static_cast<uint32_t>(BlocksFor(copy->bytes));
  }
  copy->~HeapCopy();
  ::operator delete(pointer);
}

size_t OutputPool::blocks_in_use() const {
  return in_use_.load(std::memory_order_relaxed) + BlocksFor(heap_bytes_.load(std::memory_order_relaxed));
}

void OutputPool::NoteHighWater() {
  if (blocks_in_use() > blocks_high_water()) high_water_.store(blocks_in_use(), std::memory_order_relaxed);
}

// Single blocks come from the low end and runs from the high one, so that small replies don't cut up the room for large
// ones.
size_t OutputPool::FindOne() const {
  const std::vector<uint64_t>& free = regions_[region_].free;
  for (size_t word = 0; word < free.size(); ++word) {
    if (free[word] != 0) return word * kBits + std::countr_zero(free[word]);
  }
  return kNone;
}

size_t OutputPool::FindRun(size_t count) const {
  const std::vector<uint64_t>& free = regions_[region_].free;
  size_t length = 0;
  for (size_t block = num_blocks_; block-- > 0;) {
    const uint64_t word = free[block / kBits];
    if (word == 0) {
      block -= block % kBits;  // nothing free in this word
      length = 0;
    } else if ((word >> (block % kBits) & 1) == 0) {
      length = 0;
    } else if (++length == count) {
      return block;
    }
  }
  return kNone;
}

void OutputPool::Mark(Region& region, size_t first, size_t count, bool free) {
  for (size_t block = first; block < first + count; ++block) {
    const uint64_t bit = uint64_t{1} << (block % kBits);
    uint64_t& word = region.free[block / kBits];
    word = free ? word | bit : word & ~bit;
  }
}

void OutputPool::GiveBack(OutputPermit::Run* run) {
  MutexLock lock(&mutex_);
  Release(*run);
}

void OutputPool::Release(OutputPermit::Run& run) {
  Mark(*run.region, run.first, run.count, /*free=*/true);
  in_use_.fetch_sub(run.count, std::memory_order_relaxed);
  blocks_of_[run.account] -= static_cast<uint32_t>(run.count);
}

}  // namespace nsa::metadata::server
