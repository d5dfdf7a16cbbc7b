#include "server/status_page.h"

#include <google/protobuf/util/json_util.h>
#include <google/protobuf/util/time_util.h>

#include "absl/strings/escaping.h"
#include "absl/time/time.h"
#include "server/status_page_html.h"

namespace nsa::metadata::server {
namespace {

double Milliseconds(uint64_t nanoseconds) { return static_cast<double>(nanoseconds) * 1e-6; }

void Set(const SlowCall& from, status::v1::SlowCall* to) {
  *to->mutable_ended() = google::protobuf::util::TimeUtil::NanosecondsToTimestamp(absl::ToUnixNanos(from.ended));
  to->set_method(std::string(from.method));
  to->set_outcome(from.outcome);
  to->set_caller(absl::CHexEscape(from.caller));
  to->set_traceparent(from.traceparent);
  to->set_total(Milliseconds(from.total_ns));
  if (!from.journey) return;
  const Journey& j = *from.journey;
  auto& stages = *to->mutable_stages();
  stages["parse"] = Milliseconds(j.parse_ns);
  stages["admit"] = Milliseconds(j.admit_ns);
  stages["queue"] = Milliseconds(j.queue_ns);
  stages["send"] = Milliseconds(from.send_ns);
  to->set_sequences(static_cast<int32_t>(j.num_sequences));
  to->set_tokens(static_cast<int32_t>(j.total_tokens));
  if (j.batch_requests == 0) return;
  stages["pack"] = Milliseconds(j.pack_ns);
  stages["device"] = Milliseconds(j.device_ns);
  stages["frame"] = Milliseconds(j.frame_ns);
  to->set_batch_requests(static_cast<int32_t>(j.batch_requests));
  to->set_batch_tokens(static_cast<int32_t>(j.batch_tokens));
  to->set_kernel(std::string(kernels::KernelName(j.kernel)));
}

}  // namespace

std::string_view StatusPage() { return {reinterpret_cast<const char*>(kStatusPage), sizeof kStatusPage}; }

void Describe(const SlowCalls& slow_calls, status::v1::Status& status) {
  for (const SlowCall& call : slow_calls.Last()) Set(call, status.add_slow_calls());
}

std::string ToJson(const status::v1::Status& status) {
  google::protobuf::util::JsonPrintOptions options;
  options.always_print_primitive_fields = true;
  std::string json;
  // All of its text is printable ASCII.
  (void)google::protobuf::util::MessageToJsonString(status, &json, options);
  return json;
}

}  // namespace nsa::metadata::server
