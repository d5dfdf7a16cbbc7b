// gRPC hands our objects from thread to thread, and sees to it that the one who takes finds what the other left. Its
// library is not built for ThreadSanitizer, which is told here.
#pragma once

#if defined(__SANITIZE_THREAD__)
#define NSA_TSAN 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define NSA_TSAN 1
#endif
#endif
#ifdef NSA_TSAN
#include <sanitizer/tsan_interface.h>
#endif

namespace nsa::metadata::server {

// Before gRPC gets `object`.
inline void GivenToGrpc([[maybe_unused]] void* object) {
#ifdef NSA_TSAN
  __tsan_release(object);
#endif
}

// When gRPC gives `object` back.
inline void TakenFromGrpc([[maybe_unused]] void* object) {
#ifdef NSA_TSAN
  __tsan_acquire(object);
#endif
}

}  // namespace nsa::metadata::server
