#include "server/command_line.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/flags/usage.h"
#include "absl/flags/usage_config.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "server/version.h"

using nsa::metadata::server::Options;

namespace {
const Options kDefault;
}

ABSL_FLAG(std::vector<std::string>, listen, kDefault.listen,
          "Where to serve gRPC: host:port, [v6]:port or unix:path, several with commas, or by several flags of the "
          "command line");
ABSL_FLAG(std::string, health_listen, kDefault.health_listen, "Where to serve grpc.health.v1");
ABSL_FLAG(std::string, metrics_listen, kDefault.metrics_listen,
          "Where to serve the status page, /metrics, /healthz and /readyz over HTTP");
ABSL_FLAG(std::string, tls_certificate, kDefault.trust.tls.certificate,
          "PEM file of the server's certificate and those that lead to its root; empty: plain text");
ABSL_FLAG(std::string, tls_key, kDefault.trust.tls.key, "PEM file of its key");
ABSL_FLAG(std::string, tls_client_ca, kDefault.trust.tls.client_ca,
          "PEM file of the roots of callers' certificates, which each has to have; empty: callers need none");
ABSL_FLAG(std::string, authorization_policy, kDefault.trust.authorization_policy,
          "JSON file that says which callers, by the names in their certificates, may call which methods "
          "(proto/nsa/metadata/policy/v1/policy.proto); empty: all may call all");
ABSL_FLAG(absl::Duration, reload_period, kDefault.trust.reload_period,
          "How often the files of --tls_* and --authorization_policy are looked at for other contents");
ABSL_FLAG(bool, allow_plaintext, kDefault.allow_plaintext,
          "Without --tls_certificate: allow plain text on addresses that are not loopback");
ABSL_FLAG(bool, reflection, kDefault.reflection, "Serve gRPC reflection");
ABSL_FLAG(std::string, backend, kDefault.backend, "What computes: auto, cuda, cpu or reference");
ABSL_FLAG(int64_t, cuda_device, kDefault.cuda_device, "The CUDA device");
ABSL_FLAG(std::string, kernel, kDefault.kernel,
          "The device's kernel: adaptive, threshold, linear, binary, rows or tile");
ABSL_FLAG(int64_t, kernel_threshold, kDefault.kernel_threshold,
          "With --kernel=threshold: linear search up to this many sequences, binary search above");
ABSL_FLAG(
    int64_t, cpu_below_tokens, kDefault.cpu_below_tokens,
    "With a device: batches of fewer tokens are computed on the CPU; doctor says from how many the card is quicker");
ABSL_FLAG(absl::Duration, gpu_timeout, kDefault.gpu_timeout,
          "A batch that is longer on the device than this is a fault of the device");
ABSL_FLAG(std::string, on_gpu_fault, kDefault.on_gpu_fault,
          "Once the device has failed and the CPU has taken over: cpu (serve on) or exit (drain, end with a failure)");
ABSL_FLAG(int64_t, lanes, kDefault.lanes, "Batches computed at once; 0: one a core, at least 8 on a device");
ABSL_FLAG(int64_t, completion_queues, kDefault.completion_queues,
          "gRPC completion queues, a thread each; 0: one for two cores");
ABSL_FLAG(
    std::string, hold_answers, kDefault.hold_answers,
    "Small answers that wait, while their thread has more requests at hand, for others to the same connection, to "
    "leave in one segment: all, streams, none, or auto (all on up to 4 cores, else streams)");
ABSL_FLAG(int64_t, max_sequences, kDefault.request.max_sequences, "Sequences a request");
ABSL_FLAG(int64_t, max_tokens, kDefault.request.max_tokens, "Tokens a request");
ABSL_FLAG(int64_t, max_reply_bytes, kDefault.request.max_reply_bytes, "Bytes of a reply");
ABSL_FLAG(int64_t, max_unary_reply_bytes, kDefault.request.max_unary_reply_bytes, "Bytes of a unary reply");
ABSL_FLAG(int64_t, max_batch_requests, kDefault.batch.max_batch_requests, "Requests a batch");
ABSL_FLAG(int64_t, max_batch_sequences, kDefault.batch.max_batch_sequences, "Sequences a batch");
ABSL_FLAG(int64_t, max_batch_tokens, kDefault.batch.max_batch_tokens, "Tokens a batch");
ABSL_FLAG(absl::Duration, batch_delay, kDefault.batch.batch_delay,
          "How long a request may wait for others while a lane is free, if its deadline allows it; 0: not at all");
ABSL_FLAG(int64_t, max_queue_requests, kDefault.batch.max_queue_requests, "Requests that may wait for a lane");
ABSL_FLAG(int64_t, output_budget_bytes, kDefault.output_budget_bytes,
          "Bytes of replies in the server at once, in blocks of 64 KiB");
ABSL_FLAG(int64_t, lengths_budget_bytes, kDefault.lengths_budget_bytes,
          "Bytes of lengths in the server at once, 8 to 16 a sequence, of requests that are read and not answered yet; "
          "those of up to 128 sequences are not counted");
ABSL_FLAG(double, caller_share, kDefault.caller_share,
          "The part of output_budget_bytes, lengths_budget_bytes and max_queue_requests that one caller may have while "
          "more than half is in use");
ABSL_FLAG(std::vector<std::string>, trusted_proxies, kDefault.trusted_proxies,
          "Addresses, or address/bits, of proxies whose callers are named in --caller_metadata");
ABSL_FLAG(
    std::string, caller_metadata, kDefault.caller_metadata,
    "The metadata key in which --trusted_proxies name a call's caller, in place of what that may say there itself");
ABSL_FLAG(int64_t, max_connections, kDefault.connection.max_connections,
          "Connections at once; 0: the smaller of 12000 and the descriptors less 256");
ABSL_FLAG(int64_t, max_streams_per_connection, kDefault.connection.max_streams_per_connection,
          "Calls at once on a connection");
ABSL_FLAG(int64_t, max_receive_message, kDefault.connection.max_receive_message, "Bytes of a request");
ABSL_FLAG(int64_t, max_metadata_bytes, kDefault.connection.max_metadata_bytes, "Bytes of a call's metadata");
ABSL_FLAG(int64_t, max_undelivered_bytes, kDefault.connection.max_undelivered_bytes,
          "Bytes that all TCP connections may have sent beside the requests that came of it, before those with the "
          "most of them are ended");
ABSL_FLAG(int64_t, max_stream_inflight, kDefault.max_stream_inflight, "Unanswered items of a stream at which it waits");
ABSL_FLAG(absl::Duration, max_rpc_duration, kDefault.max_rpc_duration, "How long a call may take");
ABSL_FLAG(absl::Duration, stream_idle_timeout, kDefault.stream_idle_timeout,
          "How long a stream may be without an item");
ABSL_FLAG(absl::Duration, write_stall_timeout, kDefault.write_stall_timeout,
          "How long a reply may wait for its reader, and a connection for a peer that takes less than 16 KiB a second");
ABSL_FLAG(absl::Duration, max_connection_age, kDefault.connection.max_connection_age,
          "By when a connection is asked to reconnect; ages are spread over the last fifth of it");
ABSL_FLAG(absl::Duration, max_connection_age_grace, kDefault.connection.max_connection_age_grace,
          "How long its calls may go on after that");
ABSL_FLAG(absl::Duration, max_connection_idle, kDefault.connection.max_connection_idle,
          "When a connection without a call is closed");
ABSL_FLAG(absl::Duration, handshake_timeout, kDefault.connection.handshake_timeout,
          "How long a connection may take to become HTTP/2");
ABSL_FLAG(absl::Duration, keepalive_time, kDefault.connection.keepalive_time,
          "When a connection on which nothing came is asked for a sign of life");
ABSL_FLAG(absl::Duration, keepalive_timeout, kDefault.connection.keepalive_timeout, "How long it may take to give one");
ABSL_FLAG(absl::Duration, slow_call_threshold, kDefault.slow_call_threshold,
          "Calls and items that take longer are logged, with where their time went; 0: none");
ABSL_FLAG(std::string, log_format, kDefault.log_format, "text, or json: an object a line");
ABSL_FLAG(absl::Duration, lame_duck, kDefault.lame_duck, "How long to serve on after SIGTERM with readiness off");
ABSL_FLAG(absl::Duration, drain_timeout, kDefault.drain_timeout, "How long calls may take after that");

namespace {

Options OptionsFromFlags() {
  Options options;
  options.listen = absl::GetFlag(FLAGS_listen);
  options.health_listen = absl::GetFlag(FLAGS_health_listen);
  options.metrics_listen = absl::GetFlag(FLAGS_metrics_listen);
  options.allow_plaintext = absl::GetFlag(FLAGS_allow_plaintext);
  options.reflection = absl::GetFlag(FLAGS_reflection);
  options.backend = absl::GetFlag(FLAGS_backend);
  options.cuda_device = absl::GetFlag(FLAGS_cuda_device);
  options.kernel = absl::GetFlag(FLAGS_kernel);
  options.kernel_threshold = absl::GetFlag(FLAGS_kernel_threshold);
  options.cpu_below_tokens = absl::GetFlag(FLAGS_cpu_below_tokens);
  options.gpu_timeout = absl::GetFlag(FLAGS_gpu_timeout);
  options.on_gpu_fault = absl::GetFlag(FLAGS_on_gpu_fault);
  options.lanes = absl::GetFlag(FLAGS_lanes);
  options.completion_queues = absl::GetFlag(FLAGS_completion_queues);
  options.hold_answers = absl::GetFlag(FLAGS_hold_answers);
  options.request = {.max_sequences = absl::GetFlag(FLAGS_max_sequences),
                     .max_tokens = absl::GetFlag(FLAGS_max_tokens),
                     .max_reply_bytes = absl::GetFlag(FLAGS_max_reply_bytes),
                     .max_unary_reply_bytes = absl::GetFlag(FLAGS_max_unary_reply_bytes)};
  options.batch = {.max_batch_requests = absl::GetFlag(FLAGS_max_batch_requests),
                   .max_batch_sequences = absl::GetFlag(FLAGS_max_batch_sequences),
                   .max_batch_tokens = absl::GetFlag(FLAGS_max_batch_tokens),
                   .batch_delay = absl::GetFlag(FLAGS_batch_delay),
                   .max_queue_requests = absl::GetFlag(FLAGS_max_queue_requests)};
  options.connection = {.max_connections = absl::GetFlag(FLAGS_max_connections),
                        .max_streams_per_connection = absl::GetFlag(FLAGS_max_streams_per_connection),
                        .max_receive_message = absl::GetFlag(FLAGS_max_receive_message),
                        .max_metadata_bytes = absl::GetFlag(FLAGS_max_metadata_bytes),
                        .max_undelivered_bytes = absl::GetFlag(FLAGS_max_undelivered_bytes),
                        .max_connection_age = absl::GetFlag(FLAGS_max_connection_age),
                        .max_connection_age_grace = absl::GetFlag(FLAGS_max_connection_age_grace),
                        .max_connection_idle = absl::GetFlag(FLAGS_max_connection_idle),
                        .handshake_timeout = absl::GetFlag(FLAGS_handshake_timeout),
                        .keepalive_time = absl::GetFlag(FLAGS_keepalive_time),
                        .keepalive_timeout = absl::GetFlag(FLAGS_keepalive_timeout)};
  options.output_budget_bytes = absl::GetFlag(FLAGS_output_budget_bytes);
  options.lengths_budget_bytes = absl::GetFlag(FLAGS_lengths_budget_bytes);
  options.caller_share = absl::GetFlag(FLAGS_caller_share);
  options.trust = {.tls = {.certificate = absl::GetFlag(FLAGS_tls_certificate),
                           .key = absl::GetFlag(FLAGS_tls_key),
                           .client_ca = absl::GetFlag(FLAGS_tls_client_ca)},
                   .authorization_policy = absl::GetFlag(FLAGS_authorization_policy),
                   .reload_period = absl::GetFlag(FLAGS_reload_period)};
  options.trusted_proxies = absl::GetFlag(FLAGS_trusted_proxies);
  options.caller_metadata = absl::GetFlag(FLAGS_caller_metadata);
  options.stream_idle_timeout = absl::GetFlag(FLAGS_stream_idle_timeout);
  options.write_stall_timeout = absl::GetFlag(FLAGS_write_stall_timeout);
  options.max_stream_inflight = absl::GetFlag(FLAGS_max_stream_inflight);
  options.max_rpc_duration = absl::GetFlag(FLAGS_max_rpc_duration);
  options.slow_call_threshold = absl::GetFlag(FLAGS_slow_call_threshold);
  options.log_format = absl::GetFlag(FLAGS_log_format);
  options.lame_duck = absl::GetFlag(FLAGS_lame_duck);
  options.drain_timeout = absl::GetFlag(FLAGS_drain_timeout);
  return options;
}

// Sets every flag of ours that has an NSA_METADATA_<FLAG> in the environment. The command line comes after and wins.
void SetFlagsFromEnvironment() {
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    const std::string variable = absl::StrCat("NSA_METADATA_", absl::AsciiStrToUpper(name));
    const char* value = getenv(variable.c_str());
    if (value == nullptr) continue;
    std::string error;
    if (!flag->ParseFrom(value, &error)) {
      fprintf(stderr, "%s=%s: %s\n", variable.c_str(), value, error.c_str());
      exit(EXIT_FAILURE);
    }
  }
}

void Refuse(const std::string& file, const char* why) {
  fprintf(stderr, "--flagfile=%s %s\n", file.c_str(), why);
  exit(EXIT_FAILURE);
}

// What abseil does not refuse by itself: it reads a file that includes itself for ever, and aborts at a flag without a
// name. `including` are the files on the way to `file`.
void CheckFlagFile(const std::string& file, std::vector<std::string>& including) {
  if (std::find(including.begin(), including.end(), file) != including.end()) Refuse(file, "includes itself");
  std::error_code error;
  if (!std::filesystem::is_regular_file(file, error)) return;  // what a pipe holds can be read once only
  including.push_back(file);
  std::ifstream lines(file);
  for (std::string text; std::getline(lines, text);) {
    absl::string_view line = absl::StripAsciiWhitespace(text);
    if (!absl::ConsumePrefix(&line, "-")) continue;
    absl::ConsumePrefix(&line, "-");
    if (line.empty() || line[0] == '=') Refuse(file, "has a line without a flag's name");
    if (!absl::ConsumePrefix(&line, "flagfile=")) continue;
    for (const absl::string_view included : absl::StrSplit(line, ',')) CheckFlagFile(std::string(included), including);
  }
  including.pop_back();
}

// Of the command line's --flagfile, and of NSA_METADATA_FLAGFILE.
void CheckFlagFiles(int argc, char** argv) {
  std::vector<absl::string_view> lists;
  if (const char* files = getenv("NSA_METADATA_FLAGFILE")) lists.emplace_back(files);
  for (int i = 1; i < argc; ++i) {
    absl::string_view argument = argv[i];
    if (!absl::ConsumePrefix(&argument, "--flagfile") && !absl::ConsumePrefix(&argument, "-flagfile")) continue;
    if (absl::ConsumePrefix(&argument, "=")) {
      lists.push_back(argument);
    } else if (argument.empty() && i + 1 < argc) {
      lists.emplace_back(argv[i + 1]);
    }
  }
  for (const absl::string_view list : lists) {
    for (const absl::string_view file : absl::StrSplit(list, ',')) {
      std::vector<std::string> including;
      CheckFlagFile(std::string(file), including);
    }
  }
}

// abseil keeps what a flag was given last: where --listen comes more than once, one with all of its addresses; else "".
std::string JoinedListen(int argc, char** argv) {
  std::vector<absl::string_view> addresses;
  for (int i = 1; i < argc && absl::string_view(argv[i]) != "--"; ++i) {
    absl::string_view argument = argv[i];
    if (!absl::ConsumePrefix(&argument, "--listen") && !absl::ConsumePrefix(&argument, "-listen")) continue;
    if (absl::ConsumePrefix(&argument, "=")) {
      addresses.push_back(argument);
    } else if (argument.empty() && i + 1 < argc) {
      addresses.emplace_back(argv[++i]);
    }
  }
  return addresses.size() < 2 ? "" : absl::StrCat("--listen=", absl::StrJoin(addresses, ","));
}

}  // namespace

namespace nsa::metadata::server {

Options OptionsFromCommandLine(int argc, char** argv) {
  absl::SetProgramUsageMessage("Expands sequence lengths into sparse-attention metadata, over gRPC.");
  absl::FlagsUsageConfig usage;
  usage.version_string = [] { return absl::StrCat("nsa-metadata-server ", kVersion, "\n"); };
  usage.contains_help_flags = [](absl::string_view file) { return absl::EndsWith(file, "command_line.cc"); };
  absl::SetFlagsUsageConfig(usage);
  SetFlagsFromEnvironment();
  CheckFlagFiles(argc, argv);
  const std::string listen = JoinedListen(argc, argv);
  std::vector<char*> arguments(argv, argv + argc);
  if (!listen.empty()) {
    const auto end = std::find_if(arguments.begin() + 1, arguments.end(),
                                  [](const char* argument) { return absl::string_view(argument) == "--"; });
    arguments.insert(end, const_cast<char*>(listen.c_str()));
  }
  const std::vector<char*> rest = absl::ParseCommandLine(static_cast<int>(arguments.size()), arguments.data());
  if (rest.size() > 1) {
    fprintf(stderr, "unknown argument '%s'; flags are --name=value, see --help\n", rest[1]);
    exit(EXIT_FAILURE);
  }
  return OptionsFromFlags();
}

}  // namespace nsa::metadata::server
