// How much memory the lengths of requests may take that are read and not answered yet.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "server/account.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

class LengthsBudget;

// A part of the budget, given back at its end. Movable; empty when default-constructed.
class LengthsPermit {
 public:
  LengthsPermit() = default;
  LengthsPermit(LengthsPermit&& other) noexcept
      : budget_(std::exchange(other.budget_, nullptr)), bytes_(other.bytes_), account_(other.account_) {}
  LengthsPermit& operator=(LengthsPermit&& other) noexcept {
    std::swap(budget_, other.budget_);
    std::swap(bytes_, other.bytes_);
    std::swap(account_, other.account_);
    return *this;
  }
  ~LengthsPermit();

  explicit operator bool() const { return budget_ != nullptr; }

 private:
  friend class LengthsBudget;
  LengthsPermit(LengthsBudget& budget, int64_t bytes, Account account)
      : budget_(&budget), bytes_(bytes), account_(account) {}

  LengthsBudget* budget_ = nullptr;
  int64_t bytes_ = 0;
  Account account_ = kNoAccount;
};

// A count only: the memory is the requests' own. Outlives its permits. Thread-safe.
class LengthsBudget {
 public:
  // While more than half is in use, an account may have the part `caller_share` of it.
  LengthsBudget(int64_t bytes, double caller_share)
      : bytes_(bytes), share_(ShareOf(caller_share, bytes)), bytes_of_(kNumAccounts) {}

  // Charged to `account`; empty when the budget, or the account's share of it, has no room for `bytes`.
  LengthsPermit Reserve(int64_t bytes, Account account) ABSL_LOCKS_EXCLUDED(mutex_);
  // Of what a stream has read already: without regard to the share, which was MayReadOn's.
  LengthsPermit ReserveRead(int64_t bytes, Account account) ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether `bytes` more would pass the account's share, though not the budget.
  bool OverShare(int64_t bytes, Account account) const ABSL_LOCKS_EXCLUDED(mutex_);
  // Whether a stream of the account's that has requests in flight reads another, of which it isn't known how long it
  // is: while half of the budget is free, or half of the account's share. The rest is for those whose reading has
  // begun.
  bool MayReadOn(Account account) const ABSL_LOCKS_EXCLUDED(mutex_);

  int64_t bytes() const { return bytes_; }
  int64_t bytes_in_use() const { return in_use_.load(std::memory_order_relaxed); }

 private:
  friend class LengthsPermit;
  bool PassesShare(int64_t bytes, Account account) const ABSL_SHARED_LOCKS_REQUIRED(mutex_);
  LengthsPermit Take(int64_t bytes, Account account) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void GiveBack(int64_t bytes, Account account) ABSL_LOCKS_EXCLUDED(mutex_);

  const int64_t bytes_;
  const int64_t share_;
  std::atomic<int64_t> in_use_{0};  // written with mutex_ held
  mutable Mutex mutex_;
  std::vector<int64_t> bytes_of_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nsa::metadata::server
