#include "server/options.h"

#include <sys/resource.h>

#include <algorithm>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "kernels/launch_plan.h"
#include "server/address.h"
#include "server/callers.h"
#include "server/output_pool.h"

namespace nsa::metadata::server {
namespace {

constexpr int64_t kBlock = OutputPool::kBlockBytes;
constexpr int64_t kBytesPerSequence = 2 * sizeof(int32_t);
constexpr int64_t kMaxInt32 = INT32_MAX;
// What gRPC and this process need beside the callers' connections; the health port's are among them.
constexpr int64_t kOwnDescriptors = 256;
constexpr int64_t kMostConnections = 12'000;
// Up to so many, processor time is what a call waits for.
constexpr int64_t kFewCores = 4;

// `why` says where a bound that follows from another flag comes from.
absl::Status InRange(const char* flag, int64_t value, int64_t least, int64_t most, const char* why = "") {
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", value, " must be from ", least, " to ", most, why));
}

absl::Status InRange(const char* flag, absl::Duration value, absl::Duration least) {
  // Channel arguments are int milliseconds.
  const absl::Duration most = absl::Hours(24 * 20);
  if (value >= least && value <= most) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", absl::FormatDuration(value), " must be from ",
                                                 absl::FormatDuration(least), " to ", absl::FormatDuration(most)));
}

absl::Status CheckAddress(const char* flag, const std::string& text, bool allow_plaintext, bool allow_unix) {
  const absl::StatusOr<Address> address = ParseAddress(text);
  if (!address.ok())
    return absl::InvalidArgumentError(absl::StrCat("--", flag, ": ", std::string(address.status().message())));
  if (address->is_unix && !allow_unix)
    return absl::InvalidArgumentError(absl::StrCat("--", flag, "=", text, " can't be a Unix socket"));
  if (!address->IsLocal() && !allow_plaintext) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", flag, "=", text, " is not loopback: that needs --tls_certificate, or --allow_plaintext"));
  }
  return absl::OkStatus();
}

absl::Status CheckAddresses(const Options& options) {
  if (options.listen.empty()) return absl::InvalidArgumentError("--listen= must name an address");
  for (const std::string& address : options.listen) {
    const bool allow_any = options.allow_plaintext || !options.trust.tls.certificate.empty();
    if (absl::Status status = CheckAddress("listen", address, allow_any, /*allow_unix=*/true); !status.ok()) {
      return status;
    }
  }
  // Probes and scrapes come from outside the pod; of callers the status page tells who was slow, and nothing they sent.
  if (absl::Status status =
          CheckAddress("health_listen", options.health_listen, /*allow_plaintext=*/true, /*allow_unix=*/true);
      !status.ok()) {
    return status;
  }
  return CheckAddress("metrics_listen", options.metrics_listen, /*allow_plaintext=*/true, /*allow_unix=*/false);
}

// Each needs another, or excludes it.
absl::Status CheckTrust(const Options& options) {
  const TrustOptions& trust = options.trust;
  const auto wrong = [](const char* what) { return absl::InvalidArgumentError(what); };
  if (trust.tls.certificate.empty() != trust.tls.key.empty()) {
    return wrong("--tls_certificate and --tls_key need each other");
  }
  if (!trust.tls.client_ca.empty() && trust.tls.certificate.empty()) {
    return wrong("--tls_client_ca needs --tls_certificate");
  }
  if (!trust.authorization_policy.empty() && trust.tls.client_ca.empty()) {
    return wrong("--authorization_policy needs --tls_client_ca: callers are known by their certificates");
  }
  if (!trust.authorization_policy.empty() && options.reflection) {
    return wrong("--reflection can't be served with --authorization_policy, which would not cover it");
  }
  return InRange("reload_period", trust.reload_period, absl::Milliseconds(10));
}

absl::Status CheckBackend(const std::string& backend) {
  if (backend == "auto" || backend == "cuda" || backend == "cpu" || backend == "reference") return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--backend=", backend, " must be auto, cuda, cpu or reference"));
}

absl::Status CheckKernel(const std::string& kernel) {
  if (kernels::ParseKernelChoice(kernel)) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("--kernel=", kernel, " must be adaptive, threshold, linear, binary, rows or tile"));
}

absl::Status CheckFaultAction(const std::string& action) {
  if (action == "cpu" || action == "exit") return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--on_gpu_fault=", action, " must be cpu or exit"));
}

absl::Status CheckHoldAnswers(const std::string& hold) {
  if (hold == "auto" || hold == "all" || hold == "streams" || hold == "none") return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--hold_answers=", hold, " must be auto, all, streams or none"));
}

absl::Status CheckLogFormat(const std::string& format) {
  if (format == "text" || format == "json") return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("--log_format=", format, " must be text or json"));
}

absl::Status CheckCallers(const Options& options) {
  if (!(options.caller_share > 0 && options.caller_share <= 1)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--caller_share=", options.caller_share, " must be more than 0 and at most 1"));
  }
  for (const std::string& proxy : options.trusted_proxies) {
    if (absl::StatusOr<AddressBlock> block = AddressBlock::Parse(proxy); !block.ok()) {
      return absl::InvalidArgumentError(absl::StrCat("--trusted_proxies: ", std::string(block.status().message())));
    }
  }
  // As HTTP/2 and gRPC have names of metadata.
  const bool named = std::all_of(options.caller_metadata.begin(), options.caller_metadata.end(), [](char c) {
    return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '-' || c == '_' || c == '.';
  });
  if (!named) {
    return absl::InvalidArgumentError(absl::StrCat("--caller_metadata=", options.caller_metadata,
                                                   " must be of lower-case letters, digits and - _ ."));
  }
  if (options.trusted_proxies.empty() != options.caller_metadata.empty()) {
    return absl::InvalidArgumentError("--trusted_proxies and --caller_metadata go together: one of them is not set");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const Options& o) {
  for (const absl::Status& status : {
           CheckAddresses(o),
           CheckTrust(o),
           CheckBackend(o.backend),
           CheckKernel(o.kernel),
           CheckFaultAction(o.on_gpu_fault),
           CheckCallers(o),
           InRange("cuda_device", o.cuda_device, 0, 1023),
           InRange("kernel_threshold", o.kernel_threshold, 0, kMaxInt32),
           InRange("cpu_below_tokens", o.cpu_below_tokens, 0, kMaxInt32),
           InRange("lanes", o.lanes, 0, 64),
           InRange("completion_queues", o.completion_queues, 0, 64),
           CheckHoldAnswers(o.hold_answers),
           InRange("max_sequences", o.request.max_sequences, 1, int64_t{1} << 24),
           InRange("max_tokens", o.request.max_tokens, 1, int64_t{1} << 28),
           InRange("max_reply_bytes", o.request.max_reply_bytes, 1024, kMaxInt32),
           InRange("max_unary_reply_bytes", o.request.max_unary_reply_bytes, 1024, o.request.max_reply_bytes,
                   ", which is --max_reply_bytes"),
           InRange("max_batch_requests", o.batch.max_batch_requests, 1, 1 << 16),
           InRange("max_batch_sequences", o.batch.max_batch_sequences, o.request.max_sequences, int64_t{1} << 26,
                   ": at least --max_sequences"),
           InRange("max_batch_tokens", o.batch.max_batch_tokens, o.request.max_tokens, int64_t{1} << 30,
                   ": at least --max_tokens"),
           InRange("max_queue_requests", o.batch.max_queue_requests, 1, 1 << 20),
           InRange("batch_delay", o.batch.batch_delay, absl::ZeroDuration()),
           InRange("max_connections", o.connection.max_connections, 0, 1 << 20),
           InRange("max_streams_per_connection", o.connection.max_streams_per_connection, 1, 1 << 20),
           InRange("max_receive_message", o.connection.max_receive_message, 1024, int64_t{64} << 20),
           InRange("max_metadata_bytes", o.connection.max_metadata_bytes, 512, 1 << 20),
           // Room for a few requests on their way.
           InRange("max_undelivered_bytes", o.connection.max_undelivered_bytes, 4 * o.connection.max_receive_message,
                   int64_t{1} << 40, ": at least 4 times --max_receive_message"),
           InRange("max_connection_age", o.connection.max_connection_age, absl::Milliseconds(1)),
           InRange("max_connection_age_grace", o.connection.max_connection_age_grace, absl::Milliseconds(1)),
           InRange("max_connection_idle", o.connection.max_connection_idle, absl::Milliseconds(2)),
           InRange("handshake_timeout", o.connection.handshake_timeout, absl::Milliseconds(1)),
           InRange("keepalive_time", o.connection.keepalive_time, absl::Seconds(1)),
           InRange("keepalive_timeout", o.connection.keepalive_timeout, absl::Milliseconds(1)),
           // Room for the largest reply: its arrays, and what aligns them.
           InRange("output_budget_bytes", o.output_budget_bytes, o.request.max_reply_bytes + kBlock, int64_t{1} << 40,
                   ": at least --max_reply_bytes and a block of 64 KiB"),
           // Of the largest request, as its arrays may have grown.
           InRange("lengths_budget_bytes", o.lengths_budget_bytes, 2 * o.request.max_sequences * kBytesPerSequence,
                   int64_t{1} << 40, ": at least what the lengths of two times --max_sequences take"),
           InRange("max_stream_inflight", o.max_stream_inflight, 1, 1 << 16),
           InRange("max_rpc_duration", o.max_rpc_duration, absl::Milliseconds(1)),
           InRange("stream_idle_timeout", o.stream_idle_timeout, absl::Milliseconds(1)),
           InRange("write_stall_timeout", o.write_stall_timeout, absl::Milliseconds(1)),
           InRange("gpu_timeout", o.gpu_timeout, absl::Milliseconds(1)),
           InRange("slow_call_threshold", o.slow_call_threshold, absl::ZeroDuration()),
           CheckLogFormat(o.log_format),
           InRange("lame_duck", o.lame_duck, absl::ZeroDuration()),
           InRange("drain_timeout", o.drain_timeout, absl::ZeroDuration()),
       }) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

Options Resolve(Options options) {
  const int64_t cores = std::max<int64_t>(std::thread::hardware_concurrency(), 1);
  if (options.completion_queues == 0) options.completion_queues = std::clamp<int64_t>(cores / 2, 1, 64);
  if (options.hold_answers == "auto") options.hold_answers = cores <= kFewCores ? "all" : "streams";
  if (options.connection.max_connections == 0) {
    rlimit descriptors = {};
    getrlimit(RLIMIT_NOFILE, &descriptors);
    const int64_t have = static_cast<int64_t>(std::min<rlim_t>(descriptors.rlim_cur, 1 << 20));
    // With few descriptors half of them go to callers.
    options.connection.max_connections = std::min(kMostConnections, std::max(have - kOwnDescriptors, have / 2));
  }
  options.output_budget_bytes = (options.output_budget_bytes + kBlock - 1) / kBlock * kBlock;
  return options;
}

}  // namespace nsa::metadata::server
