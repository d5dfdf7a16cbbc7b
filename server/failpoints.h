// Where a test can stop a request on its way through the server.
#pragma once

#include <cstdint>

namespace nsa::metadata::server {

enum class Step : uint8_t {
  kEnqueued,     // it is in the queue
  kBatchClosed,  // a batch has been taken from it
  kUploaded,     // the batch's lengths are where the lane takes them from
  kKernelDone,   // its outputs are written
  kReplying,     // a request's reply is framed, and not yet given to gRPC
};
inline constexpr Step kAllSteps[] = {Step::kEnqueued, Step::kBatchClosed, Step::kUploaded, Step::kKernelDone,
                                     Step::kReplying};

// Thread-safe. A server that serves has none.
class Failpoints {
 public:
  virtual ~Failpoints() = default;
  // Called by the thread that takes a request or batch past `step`, with no lock held; it may block.
  virtual void Reached(Step step) = 0;
};

}  // namespace nsa::metadata::server
