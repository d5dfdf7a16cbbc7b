// Small numbers for threads, to give each its own of something.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nsa::metadata::server {

namespace internal {

inline constexpr size_t kNoThreadNumber = SIZE_MAX;
inline constexpr size_t kEndingThread = SIZE_MAX - 1;
extern constinit thread_local size_t thread_number;
size_t TakeThreadNumber();

}  // namespace internal

// The calling thread's number: no other thread has it until this one ends, when all have kEndingThread. As small as can
// be.
inline size_t ThreadNumber() {
  const size_t number = internal::thread_number;
  return number != internal::kNoThreadNumber ? number : internal::TakeThreadNumber();
}

}  // namespace nsa::metadata::server
