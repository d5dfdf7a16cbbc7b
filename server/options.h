// What a server is told to do. Every field is a flag of the same name; command_line.cc copies them here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "kernels/backend.h"
#include "server/certificates.h"

namespace nsa::metadata::server {

// What one request may ask for. Checked by the codec.
struct RequestLimits {
  int64_t max_sequences = 65'536;
  int64_t max_tokens = 4'194'304;
  int64_t max_reply_bytes = int64_t{64} << 20;
  // A gRPC client's default receive limit, less room for what surrounds the arrays.
  int64_t max_unary_reply_bytes = (int64_t{4} << 20) - (int64_t{64} << 10);
};

// When a batch is full, and how long one may wait to fill.
struct BatchOptions {
  int64_t max_batch_requests = 1'024;
  int64_t max_batch_sequences = 65'536;
  int64_t max_batch_tokens = 4'194'304;
  // 0: a batch starts as soon as a lane is free.
  absl::Duration batch_delay = absl::ZeroDuration();
  int64_t max_queue_requests = 4'096;
};

struct ConnectionOptions {
  // 0: the smaller of 12,000 and what the process's descriptors allow.
  int64_t max_connections = 0;
  int64_t max_streams_per_connection = 100;
  int64_t max_receive_message = int64_t{1} << 20;
  int64_t max_metadata_bytes = 8 << 10;
  // What all connections together may have sent that is no part of a request delivered, before those with the most of
  // it are ended.
  int64_t max_undelivered_bytes = int64_t{4} << 20;
  absl::Duration max_connection_age = absl::Minutes(30);
  absl::Duration max_connection_age_grace = absl::Minutes(1);
  absl::Duration max_connection_idle = absl::Minutes(15);
  absl::Duration handshake_timeout = absl::Seconds(10);
  // A connection on which nothing has come for keepalive_time is asked for a sign of life, and closed without one
  // within keepalive_timeout.
  absl::Duration keepalive_time = absl::Minutes(1);
  absl::Duration keepalive_timeout = absl::Seconds(20);
};

// Who may call.
struct TrustOptions {
  // Without a certificate, plain text.
  CertificateFiles tls;
  // A JSON file of a policy.v1.AuthorizationPolicy; empty: who can connect may call everything.
  std::string authorization_policy;
  // How often these files are looked at for other contents.
  absl::Duration reload_period = absl::Seconds(10);
};

struct Options {
  // "host:port", "[v6]:port" or "unix:path"; port 0 takes a free one.
  std::vector<std::string> listen = {"127.0.0.1:50051"};
  std::string health_listen = "127.0.0.1:50052";
  std::string metrics_listen = "127.0.0.1:9464";
  TrustOptions trust;
  // Without a certificate: plain text on addresses that are not loopback.
  bool allow_plaintext = false;
  bool reflection = false;

  // "auto" (CUDA when a device works, else the CPU), "cuda", "cpu" or "reference".
  std::string backend = "auto";
  int64_t cuda_device = 0;
  // "adaptive", "threshold", "linear" or "binary": how the device's kernel is chosen.
  std::string kernel = "adaptive";
  // For "threshold": linear search up to this many sequences, binary search above.
  int64_t kernel_threshold = 16;
  // With CUDA: batches of fewer tokens are computed on the CPU.
  int64_t cpu_below_tokens = 0;
  // A batch that is longer on the device than this is a fault of the device.
  absl::Duration gpu_timeout = absl::Seconds(1);
  // What to do once the device has failed and the CPU has taken over: "cpu", serve on; "exit", drain and end the
  // process with a failure, to be started again.
  std::string on_gpu_fault = "cpu";
  // Batches computed at once. 0: one a core, at least 8 on a device.
  int64_t lanes = 0;
  // Completion queues, a thread each. 0: one for two cores: gRPC's threads hand each other the events of all
  // connections, so that a thread a core costs more of a call's time than it brings (tests/bench/results).
  int64_t completion_queues = 0;
  // Which small answers are held back for those that follow on their connection, to leave in one segment: "all",
  // "streams", "none", or "auto", which is "all" on up to 4 cores and "streams" on more. Where cores are few it saves
  // what they lack; where they are many a caller could have read the first answer while the next one was computed
  // (tests/bench/results). To gRPC, and so in every metric and log, what is held has been sent.
  std::string hold_answers = "auto";

  RequestLimits request;
  BatchOptions batch;
  ConnectionOptions connection;
  // Items read from one stream and not answered yet; it waits at that many, and at eight refusals that are not read.
  int64_t max_stream_inflight = 64;
  int64_t output_budget_bytes = int64_t{256} << 20;
  // Memory of lengths of requests that are read and not answered yet, of more sequences than a Task has room for in
  // itself.
  int64_t lengths_budget_bytes = int64_t{256} << 20;
  // The part of both budgets and of max_queue_requests that one caller may have while more than half of it is in use.
  double caller_share = 0.25;
  // Proxies, as addresses or blocks of them, whose callers are named in the metadata key caller_metadata.
  std::vector<std::string> trusted_proxies;
  std::string caller_metadata;
  absl::Duration max_rpc_duration = absl::Seconds(30);
  // How long a stream may be without an item.
  absl::Duration stream_idle_timeout = absl::Minutes(15);
  // How long a reply may wait for its reader, and a connection for a peer that takes less than 16 KiB a second.
  absl::Duration write_stall_timeout = absl::Seconds(30);
  // Calls, and items of streams, that take longer are logged with where their time went; 0: none.
  absl::Duration slow_call_threshold = absl::Milliseconds(100);
  // "text", or "json": an object a line.
  std::string log_format = "text";
  // How long the server serves on after SIGTERM with readiness off, so that balancers turn to others before it ends its
  // connections.
  absl::Duration lame_duck = absl::ZeroDuration();
  // How long calls in flight may take after that.
  absl::Duration drain_timeout = absl::Seconds(30);
};

// INVALID_ARGUMENT naming the flag, its value and what it must be.
absl::Status Validate(const Options& options);

// The options with every 0 that stands for "what fits this machine" replaced. `options` is valid.
Options Resolve(Options options);

}  // namespace nsa::metadata::server
