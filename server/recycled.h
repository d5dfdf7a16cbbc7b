// Memory for objects that every call needs.
#pragma once

#include <array>
#include <cstddef>
#include <new>

#include "server/tsan.h"

namespace nsa::metadata::server {

// Base of a class T whose objects are made and deleted once a call: each thread keeps the last blocks that it has freed
// for its next ones, which are still in its cache. malloc has no such short way for objects of some kilobytes.
// Sanitizers get fresh memory each time, so that they see a use after the end.
template <typename T>
class Recycled {
 public:
  static void* operator new(size_t bytes) {
    Kept& kept = ThisThreads();
    if (bytes != sizeof(T) || kept.count == 0) return ::operator new(bytes);
    return kept.blocks[--kept.count];
  }
  static void operator delete(void* block, size_t bytes) {
    Kept& kept = ThisThreads();
    if (bytes != sizeof(T) || kept.count >= kMostKept) return ::operator delete(block);
    kept.blocks[kept.count++] = block;
  }

 private:
#if defined(__SANITIZE_ADDRESS__) || defined(NSA_TSAN)
  static constexpr size_t kMostKept = 0;
#else
  static constexpr size_t kMostKept = 64;
#endif
  struct Kept {
    size_t count = 0;
    std::array<void*, kMostKept> blocks;
    ~Kept() {
      while (count > 0) ::operator delete(blocks[--count]);
    }
  };
  static Kept& ThisThreads() {
    thread_local Kept kept;
    return kept;
  }
};

}  // namespace nsa::metadata::server
