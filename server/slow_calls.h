// The calls that took long: where their time went, in the log and for the status page. And who asked for too much.
#pragma once

#include <cstddef>
#include <deque>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "nsa/metadata/v1/metadata.pb.h"
#include "server/callers.h"
#include "server/clock.h"
#include "server/journey.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/mutex.h"

namespace nsa::metadata::server {

struct SlowCall {
  absl::Time ended;
  // "Expand", or "ExpandStream" for a stream's item.
  std::string_view method;
  // "ok", or why it was not.
  std::string outcome;
  // Who called, and what it calls its own request; see TraceparentOf.
  std::string caller;
  std::string traceparent;
  uint64_t total_ns = 0;
  // How long gRPC took to send the answer; of an item of many messages, the last of them.
  uint64_t send_ns = 0;
  // Nothing where it was neither computed nor given up in the queue.
  std::optional<Journey> journey;
};

// The call's traceparent (W3C Trace Context); empty where there is none of the form that it has to have.
std::string TraceparentOf(const grpc::ServerContextBase& call);

// Thread-safe.
class SlowCalls {
 public:
  // `threshold` 0: none is slow. Logs up to ten a second, and says how many more there were.
  SlowCalls(absl::Duration threshold, const Callers& callers)
      : threshold_ns_(threshold > absl::ZeroDuration() ? absl::ToInt64Nanoseconds(threshold) : INT64_MAX),
        callers_(callers) {}

  // Notes a call, or a stream's item, that took `total_ns` if that is long.
  void Note(const grpc::ServerContextBase& call, Method method, std::optional<v1::RefusalReason> refused,
            uint64_t total_ns, uint64_t send_ns, const std::optional<Journey>& journey) {
    if (total_ns < threshold_ns_) [[likely]]
      return;
    NoteSlow(call, method, refused, total_ns, send_ns, journey);
  }

  // Logs the caller of a call that was refused for its caller's share, a line a second at most. (A stream's item
  // waits.)
  void NoteOverShare(const grpc::ServerContextBase& call);

  // The last of the slow ones, the latest first; of a second no more than there is room for.
  std::vector<SlowCall> Last() const;

 private:
  static constexpr size_t kKept = 50;

  void NoteSlow(const grpc::ServerContextBase& call, Method method, std::optional<v1::RefusalReason> refused,
                uint64_t total_ns, uint64_t send_ns, const std::optional<Journey>& journey);

  const uint64_t threshold_ns_;
  const Callers& callers_;
  LogLimit log_limit_{10};
  LogLimit keep_limit_{kKept};
  LogLimit over_share_limit_{1};
  mutable Mutex mutex_;
  std::deque<SlowCall> last_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace nsa::metadata::server
