#include "server/lengths_budget.h"

namespace nsa::metadata::server {

LengthsPermit::~LengthsPermit() {
  if (budget_ != nullptr) budget_->GiveBack(bytes_, account_);
}

LengthsPermit LengthsBudget::Reserve(int64_t bytes, Account account) {
  MutexLock lock(&mutex_);
  if (PassesShare(bytes, account)) return {};
  return Take(bytes, account);
}

LengthsPermit LengthsBudget::ReserveRead(int64_t bytes, Account account) {
  MutexLock lock(&mutex_);
  return Take(bytes, account);
}

LengthsPermit LengthsBudget::Take(int64_t bytes, Account account) {
  if (bytes_in_use() + bytes > bytes_) return {};
  in_use_.fetch_add(bytes, std::memory_order_relaxed);
  bytes_of_[account] += bytes;
  return LengthsPermit(*this, bytes, account);
}

bool LengthsBudget::OverShare(int64_t bytes, Account account) const {
  MutexLock lock(&mutex_);
  return bytes_in_use() + bytes <= bytes_ && PassesShare(bytes, account);
}

bool LengthsBudget::MayReadOn(Account account) const {
  if (2 * bytes_in_use() <= bytes_) return true;
  MutexLock lock(&mutex_);
  return account != kNoAccount && 2 * bytes_of_[account] <= share_ && bytes_in_use() < bytes_;
}

bool LengthsBudget::PassesShare(int64_t bytes, Account account) const {
  return account != kNoAccount && 2 * bytes_in_use() > bytes_ && bytes_of_[account] + bytes > share_;
}

void LengthsBudget::GiveBack(int64_t bytes, Account account) {
  MutexLock lock(&mutex_);
  in_use_.fetch_sub(bytes, std::memory_order_relaxed);
  bytes_of_[account] -= bytes;
}

}  // namespace nsa::metadata::server
