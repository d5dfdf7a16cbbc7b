#include "server/slow_calls.h"

#include <algorithm>
#include <utility>

#include "absl/time/clock.h"
#include "server/refusal.h"

namespace nsa::metadata::server {
namespace {

double Seconds(uint64_t nanoseconds) { return static_cast<double>(nanoseconds) * 1e-9; }

LogFields FieldsOf(const SlowCall& call) {
  LogFields fields = {{"method", std::string(call.method)},
                      {"outcome", call.outcome},
                      {"caller", call.caller},
                      {"seconds", Seconds(call.total_ns)}};
  if (!call.traceparent.empty()) fields.emplace_back("traceparent", call.traceparent);
  if (call.journey) {
    const Journey& j = *call.journey;
    fields.insert(fields.end(), {{"sequences", int64_t{j.num_sequences}},
                                 {"tokens", j.total_tokens},
                                 {"parse_s", Seconds(j.parse_ns)},
                                 {"admit_s", Seconds(j.admit_ns)},
                                 {"queue_s", Seconds(j.queue_ns)},
                                 {"send_s", Seconds(call.send_ns)}});
    if (j.batch_requests == 0) return fields;
    fields.insert(fields.end(), {{"pack_s", Seconds(j.pack_ns)},
                                 {"device_s", Seconds(j.device_ns)},
                                 {"frame_s", Seconds(j.frame_ns)},
                                 {"batch_requests", int64_t{j.batch_requests}},
                                 {"batch_tokens", j.batch_tokens},
                                 {"kernel", std::string(kernels::KernelName(j.kernel))}});
  }
  return fields;
}

}  // namespace

std::string TraceparentOf(const grpc::ServerContextBase& call) {
  const auto entry = call.client_metadata().find("traceparent");
  if (entry == call.client_metadata().end()) return {};
  const std::string_view text(entry->second.data(), entry->second.size());
  // Version 00: two, 32, 16 and two lower-case hexadecimal digits.
  constexpr std::string_view kForm = "hh-hhhhhhhhhhhhhhhhhhhhhhhhhhhhhhhh-hhhhhhhhhhhhhhhh-hh";
  const auto fits = [](char c, char form) {
    return form == '-' ? c == '-' : (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  };
  return std::ranges::equal(text, kForm, fits) ? std::string(text) : std::string();
}

void SlowCalls::NoteSlow(const grpc::ServerContextBase& call, Method method, std::optional<v1::RefusalReason> refused,
                         uint64_t total_ns, uint64_t send_ns, const std::optional<Journey>& journey) {
  int64_t suppressed = 0;
  const bool logged = log_limit_.Allow(&suppressed);
  int64_t not_kept = 0;
  // Where all calls are slow there is no time to write each of them down.
  if (!logged && !keep_limit_.Allow(&not_kept)) return;
  SlowCall slow = {.ended = absl::Now(),
                   .method = MethodName(method),
                   .outcome = refused ? ReasonLabel(*refused) : "ok",
                   .caller = callers_.NameOf(call),
                   .traceparent = TraceparentOf(call),
                   .total_ns = total_ns,
                   .send_ns = send_ns,
                   .journey = journey};
  if (logged) {
    LogFields fields = FieldsOf(slow);
    if (suppressed > 0) fields.emplace_back("not_logged_before", suppressed);
    Log(spdlog::level::warn, "slow call", fields);
  }
  MutexLock lock(&mutex_);
  last_.push_front(std::move(slow));
  if (last_.size() > kKept) last_.pop_back();
}

void SlowCalls::NoteOverShare(const grpc::ServerContextBase& call) {
  int64_t suppressed = 0;
  if (!over_share_limit_.Allow(&suppressed)) return;
  LogFields fields = {{"caller", callers_.NameOf(call)}};
  if (suppressed > 0) fields.emplace_back("not_logged_before", suppressed);
  Log(spdlog::level::warn, "caller over its share", fields);
}

std::vector<SlowCall> SlowCalls::Last() const {
  MutexLock lock(&mutex_);
  return {last_.begin(), last_.end()};
}

}  // namespace nsa::metadata::server
