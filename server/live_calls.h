// Which calls gRPC still has to do with.
#pragma once

#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

// Counts calls from their arrival until gRPC is done with them. Thread-safe.
class LiveCalls {
 public:
  void Begin();
  void End();
  int64_t count() const;
  // Blocks until there is none.
  void AwaitNone();

 private:
  mutable Mutex mutex_;
  CondVar none_;
  int64_t count_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace nsa::metadata::server
