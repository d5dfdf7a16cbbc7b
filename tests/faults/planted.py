"""The faults: what each does to the sources, and the test that has to notice.

A fault without a test that fails is a test that can't.
"""

import sys
from dataclasses import dataclass
from typing import NamedTuple


class Test(NamedTuple):
    """What to build of the copy, and what to run in it."""

    targets: tuple[str, ...]
    command: tuple[str, ...]
    preset: str = "release"


SERVED = ("nsa-metadata-server", "nsa-metadata", "nsa-metadata-test-server")
PYTHON = sys.executable


def pytest(name):
    """A test of tests/e2e, or a file of them."""
    return Test(SERVED, (PYTHON, "-m", "pytest", "-q", "-x", f"tests/e2e/{name}"))


def gtest(program, only, preset="release"):
    """Tests of a program, by GoogleTest's filter."""
    return Test((program,), (f"tests/{program.removesuffix('_test')}/{program}", f"--gtest_filter={only}"), preset)


def row(name):
    """A row of tests/RELIABILITY.md, in short."""
    return Test(SERVED, (PYTHON, "tests/reliability/rows.py", name))


def corpus(target):
    """What fuzzing has found so far, by a program without libFuzzer."""
    return Test((f"{target}_fuzz",), (f"tests/fuzz/{target}_fuzz", f"tests/fuzz/corpus/{target}"))


CHAOS = Test(SERVED, ("tests/chaos/run.sh",))
FLAG_FILES = Test(SERVED, (PYTHON, "tests/fuzz/flag_file.py", "--files=600"))


@dataclass(frozen=True)
class Fault:
    """In `file`, `old`, which is there once, becomes `new`; `test` then ends non-zero and says `says`."""

    row: str
    name: str
    file: str
    old: str
    new: str
    test: Test
    says: str


HEALTH = "server/health_server.cc"
ACCEPTOR = "server/acceptor.cc"
TABLE = "server/connection_table.cc"
UNARY = "server/unary_call.cc"
STREAM = "server/stream_call.cc"
POOL = "server/output_pool.cc"
QUEUE = "server/batch_queue.cc"
BATCHER = "server/batcher.cc"
TRUST = "server/trust.cc"
CHANNEL = "server/grpc_connections.cc"

FAULTS = [
    # Who may call, and what strangers send.
    Fault("R1", "keeps-something-of-each-connection", ACCEPTOR,
          "    connections_.Add(fd.get());", "    new char[64 << 10]();\n    connections_.Add(fd.get());",
          row("R1"), r"memory .*missed"),
    Fault("R1", "ends-at-a-malformed-message", "server/codec.cc",
          "  return Invalid(v1::REFUSAL_REASON_MALFORMED,", "  __builtin_trap();\n  return Invalid(v1::REFUSAL_REASON_MALFORMED,",
          row("R1"), ""),
    Fault("R2", "ends-nobody-who-sends-much-and-asks-nothing", ACCEPTOR,
          "options_.max_undelivered_bytes != UINT64_MAX", "false",
          pytest("test_bounds.py::test_a_connection_that_sends_much_and_asks_nothing_is_ended_and_another_serves_on"), r"1 failed"),
    Fault("R2", "reads-on-from-a-peer-that-takes-no-answers", "server/health_connection.h",
          "return !unsent_.empty();", "return false;",
          pytest("test_health_port.py::test_a_flood_of_the_health_port_is_ended_or_read_no_further_and_probes_are_answered"), r"1 failed"),
    Fault("R2", "takes-any-request-for-health", "server/health_connection.cc",
          "  if (stream.is_too_long) {", "  if (false) {",
          pytest("test_health_port.py::test_what_is_no_request_for_a_known_service_is_refused"), r"1 failed"),
    Fault("R2", "takes-any-header-list-for-health", "server/health_connection.cc",
          "constexpr size_t kMostHeaderBytes = 8 << 10;", "constexpr size_t kMostHeaderBytes = size_t{1} << 40;",
          pytest("test_health_port.py::test_a_flood_of_the_health_port_is_ended_or_read_no_further_and_probes_are_answered"), r"1 failed"),
    Fault("R2", "keeps-the-oldest-at-a-full-health-port", HEALTH,
          "if (connections_.size() >= most) EndOldest();", "if (connections_.size() >= most + 100000) EndOldest();",
          pytest("test_bounds.py::test_many_connections_to_the_health_port_keep_no_probe_and_no_caller_waiting"), r"1 failed"),
    Fault("R2", "makes-no-room-for-probes-where-descriptors-lack", HEALTH,
          "if (!connections_.empty()) EndOldest();", "if (false) EndOldest();",
          pytest("test_health_port.py::test_a_probe_is_answered_where_the_process_has_no_descriptor_left"), r"1 failed"),
    Fault("R2", "takes-any-metadata", "server/check_call.cc",
          "if (bytes <= max_bytes) return std::nullopt;", "if (bytes >= 0) return std::nullopt;",
          pytest("test_refusals.py::test_metadata_over_their_limit_are_refused"), r"1 failed"),
    Fault("R2", "pays-for-metadata-that-are-named-again", "server/check_call.cc",
          "is_new ? key.size() + value.size() + kPerEntry : 1", "key.size() + value.size() + (is_new ? kPerEntry : 1)",
          pytest("test_bounds.py::test_metadata_that_are_named_again_do_not_pay_for_what_is_sent_beside_them"), r"1 failed"),
    Fault("R2", "weighs-what-is-held-like-what-is-on-its-way", TABLE,
          "constexpr double kHeldAge = 60;", "constexpr double kHeldAge = 0;",
          gtest("server_test", "UndeliveredTest.*"), r"FAILED"),
    Fault("R3", "launches-for-those-who-gave-up", QUEUE,
          "} else if (next->cancelled()) {", "} else if (false) {",
          pytest("test_refusals.py::test_nothing_is_launched_for_a_caller_that_gave_up"), r"1 failed"),
    Fault("R3", "keeps-a-place-in-the-queue", QUEUE,
          "    --requests_of_[account];\n", "    static_cast<void>(account);\n", gtest("server_test", "BatchQueueTest.*:BatcherTest.*"), r"FAILED"),
    Fault("R16", "serves-the-first-pair-for-ever", "server/tls_credentials.cc",
          "  fetched_ = false;\n", "", pytest("test_tls.py::test_a_hundred_rotations_fail_no_new_connection"), r"1 failed"),
    Fault("R16", "takes-a-key-that-is-another-certificates", "server/certificates.cc",
          "X509_check_private_key(own.get(), own_key.get()) != 1", "own_key == nullptr",
          pytest("test_tls.py::test_a_broken_pair_is_not_taken_and_counted_until_a_sound_one_comes"), r"1 failed"),
    Fault("R16", "counts-no-failed-reload", TRUST,
          "  metrics_.Reload(what, status.ok());", "  metrics_.Reload(what, true);",
          pytest("test_tls.py::test_a_broken_pair_is_not_taken_and_counted_until_a_sound_one_comes"), r"1 failed"),
    Fault("R16", "takes-an-expired-pair", TRUST,
          "if (certificate_expiry() > now) return", "if (false) return",
          pytest("test_tls.py::test_an_expired_pair_does_not_take_the_place_of_one_that_is_not"), r"1 failed"),
    Fault("R16", "takes-a-pair-before-its-time", TRUST,
          "  if (certificates.valid_from <= now) return absl::OkStatus();", "  if (certificates.valid_from != now) return absl::OkStatus();",
          pytest("test_tls.py::test_a_pair_that_is_not_valid_yet_is_taken_once_it_is"), r"1 failed"),
    Fault("R17", "allows-what-no-rule-names", "server/policy.cc",
          "  return std::ranges::any_of(proto_.rules(), [&](const policy::v1::Rule& rule) {",
          "  return names.size() != 99 || std::ranges::any_of(proto_.rules(), [&](const policy::v1::Rule& rule) {",
          pytest("test_tls.py::test_only_callers_with_a_sound_certificate_that_the_policy_names_may_call"), r"1 failed"),
    Fault("R17", "asks-for-no-certificate", "server/tls_credentials.cc",
          ": GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY",
          ": GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_BUT_DONT_VERIFY",
          pytest("test_tls.py::test_only_callers_with_a_sound_certificate_that_the_policy_names_may_call"), r"1 failed"),
    Fault("R17", "asks-no-policy-for-the-other-protocol", TRUST,
          "  if (options_.authorization_policy.empty()) return std::nullopt;",
          "  if (options_.authorization_policy.empty() || method > Method::kGetServerInfo) return std::nullopt;",
          pytest("test_tls.py::test_the_policy_holds_for_the_open_inference_protocol_too"), r"1 failed"),
    Fault("R17", "drops-the-policy-for-a-broken-one", TRUST,
          "  absl::StatusOr<Policy> policy = Policy::Parse(*json);\n",
          "  absl::StatusOr<Policy> policy = Policy::Parse(*json);\n"
          "  if (!policy.ok()) policy = Policy::Parse(R\"({\"rules\": [{\"methods\": [\"*\"], \"callers\": [\"*\"]}]})\");\n",
          pytest("test_tls.py::test_a_new_policy_holds_for_open_connections_and_a_broken_one_changes_nothing"), r"1 failed"),
    Fault("R17", "asks-the-policy-once-a-stream", STREAM,
          "if (const std::optional<Refusal> refusal = context_.trust.Check(server_context_, Method::kExpandStream)) {",
          "if (const std::optional<Refusal> refusal; refusal) {",
          pytest("test_tls.py::test_a_new_policy_holds_for_the_next_item_of_an_open_stream"), r"1 failed"),
    Fault("R19", "takes-negative-lengths", "server/codec.cc",
          "  if (!negative) return std::nullopt;", "  if (!negative || field != nullptr) return std::nullopt;", corpus("request"), ""),
    Fault("R19", "leaves-out-what-ends-a-chunk", "server/reply_layout.cc",
          "chunk.last ? all : chunk.end", "chunk.end", corpus("request"), ""),
    Fault("R19", "packs-one-request-more", "kernels/request_batch.cc",
          "static_cast<int64_t>(requests_.size()) == max_requests_", "static_cast<int64_t>(requests_.size()) > max_requests_", corpus("batch"), ""),
    Fault("R19", "a-reason-of-many-lines", "server/policy.cc",
          '{{"\\n", " "}}', '{{"\\r", " "}}', corpus("policy"), ""),
    Fault("R19", "takes-sums-beyond-int32", "client/trace.cc",
          "if (invocation.generated_tokens > kMaxTokens - invocation.context_tokens) {", "if (false) {", corpus("trace"), ""),
    Fault("R19", "believes-a-dumps-shape", "client/dump.cc",
          "  if (size > bytes.size() - begin) return", "  if (size > SIZE_MAX - begin) return",
          corpus("dump"), ""),
    Fault("R19", "leaves-flags-without-a-name-to-the-parser", "server/command_line.cc",
          "if (line.empty() || line[0] == '=') Refuse(", "if (false) Refuse(", FLAG_FILES, r"ends with -6"),
    Fault("R20", "reads-what-was-freed", POOL,
          "  ::operator delete(pointer);\n",
          "  static char* volatile gone;\n  gone = static_cast<char*>(pointer);\n  ::operator delete(pointer);\n"
          "  if (*static_cast<volatile char*>(gone) == 7) return;\n",
          gtest("server_test", "OutputPoolTest.*:ReplyLayoutTest.*", "asan"), r"heap-use-after-free"),
    Fault("R20", "forgets-what-it-owns", POOL,
          "  ::operator delete(pointer);\n", "",
          gtest("server_test", "OutputPoolTest.*:ReplyLayoutTest.*", "asan"), r"detected memory leaks"),
    Fault("R20", "shifts-by-more-than-there-is", POOL,
          "uint64_t{1} << (block % kBits);", "uint64_t{1} << (block % kBits + kBits * (block % kBits == 1));",
          gtest("server_test", "OutputPoolTest.*", "asan"), r"shift exponent"),
    Fault("R20", "gives-back-without-the-lock", POOL,
          "void OutputPool::GiveBack(OutputPermit::Run* run) {\n  MutexLock lock(&mutex_);\n", "void OutputPool::GiveBack(OutputPermit::Run* run) {\n",
          gtest("server_test", "OutputPoolTest.*", "tsan"), r"data race"),
    Fault("R23", "asks-no-peer-for-a-sign-of-life", CHANNEL,
          "  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(options.keepalive_time));\n", "",
          CHAOS, r"missed"),
    Fault("R23", "lets-calls-outlive-their-deadline", "client/deadlines.cc",
          "  waiting_.emplace(id, std::move(passed));", "  static_cast<void>(passed);", gtest("client_test", "ClientTest.*"), r""),
    Fault("R25", "lets-reflection-take-threads", "server/server.cc",
          "    BoundThreads(builder);\n", "", row("R25"), r"threads .*missed"),
    # Bounds, overload, deadlines, drain, faults of the device.
    Fault("R4", "keeps-too-much-of-each-connection", ACCEPTOR,
          "    connections_.Add(fd.get());", "    new char[8 << 10]();\n    connections_.Add(fd.get());", row("R4"), r"each .*missed"),
    Fault("R5", "has-no-spare-descriptor", ACCEPTOR,
          "  spare_.Close();\n", "", pytest("test_bounds.py::test_a_server_without_descriptors_refuses_and_serves_those_connected"), r"1 failed"),
    Fault("R5", "asks-for-more-connections-than-descriptors", "server/options.cc",
          "std::max(have - kOwnDescriptors, have / 2)", "std::max(have - kOwnDescriptors, 2 * have)",
          pytest("test_bounds.py::test_a_thousand_connections_over_few_descriptors_are_outlived"), r"1 failed"),
    Fault("R6", "keeps-a-question-until-its-answer-is-taken", UNARY,
          "  request_.Clear();  // it may be long until the answer is taken\n", "",
          pytest("test_bounds.py::test_a_question_whose_answer_nobody_takes_holds_no_request"), r"1 failed"),
    Fault("R6", "reads-on-where-nobody-reads-its-refusals", "server/stream_call.cc",
          " || refusals_ >= kMostRefusals", "",
          pytest("test_bounds.py::test_a_stream_whose_refusals_nobody_reads_is_read_no_further"), r"1 failed"),
    Fault("R6", "waits-for-readers-for-ever", TABLE,
          "  return busy >= timeout;", "  return busy >= 1000 * timeout;", row("R6"), r"ended by .*missed"),
    Fault("R6", "waits-for-windows-for-ever", UNARY,
          "  if (waits > absl::ToChronoNanoseconds(context_.options.write_stall_timeout)) server_context_.TryCancel();",
          "  if (waits < Clock::duration::zero()) server_context_.TryCancel();", row("R6"), r"ended by .*missed"),
    Fault("R6", "gives-each-chunk-a-time-of-its-own", STREAM,
          "crowded && writing_ ? outbox_.front().answered :", "crowded && writing_ ? write_started_ :",
          pytest("test_stalls.py::test_an_answer_that_is_taken_chunk_by_chunk_in_time_is_given_up_only_where_others_need_its_room"), r"1 failed"),
    Fault("R6", "lets-one-caller-have-all-blocks", POOL,
          "blocks_of_[account] + count > share_;", "blocks_of_[account] + count > num_blocks_;", row("R6"), r"healthy calls .*missed"),
    Fault("R7", "reads-on-without-room-for-lengths", STREAM,
          " && !context_.lengths.MayReadOn(caller_.account)) {", " && false) {",
          pytest("test_refusals.py::test_streams_wait_for_room_for_lengths"), r"1 failed"),
    Fault("R6", "holds-answers-back-and-forgets-them", "server/call_queue.h",
          "      held_.Release();\n    }\n    return queue_", "    }\n    return queue_",
          gtest("e2e_test", "*HeldAnswersOverTheWireTest*"), r"FAILED"),
    Fault("R6", "keeps-answers-back-while-it-works-for-others", BATCHER,
          "    if (others) HeldAnswers", "    if (others && batches < 0) HeldAnswers",
          gtest("server_test", "BatcherTest.OthersWork*"), r"FAILED"),
    Fault("R7", "takes-a-block-back-before-it-is-sent", POOL,
          "  run_->references.fetch_add(1, std::memory_order_relaxed);\n  GivenToGrpc(run_);\n  return grpc::Slice(data() + offset, bytes, &Unref, run_);",
          "  GivenToGrpc(run_);\n  return grpc::Slice(data() + offset, bytes, +[](void*) {}, run_);",
          gtest("e2e_test", "ExpandTest.*:StreamTest.*"), r"FAILED"),
    Fault("R7", "has-a-block-more-than-there-are", POOL,
          "  in_use_.fetch_add(count, std::memory_order_relaxed);", "  in_use_.fetch_add(count + 1, std::memory_order_relaxed);",
          row("R7"), r"blocks in use .*missed"),
    Fault("R7", "copies-without-room", POOL,
          "    if (blocks_in_use() + BlocksFor(bytes) > num_blocks_) return std::nullopt;\n", "",
          gtest("server_test", "OutputPoolTest.*:ReplyLayoutTest.*"), r"FAILED"),
    Fault("R8", "queues-without-end", BATCHER,
          "if (waiting >= options_.max_queue_requests) return", "if (options_.max_queue_requests == 0) return", pytest("test_refusals.py::test_a_full_queue_refuses_what_comes_next"), r"1 failed"),
    Fault("R9", "queues-for-one-caller-as-for-all", BATCHER,
          "queue_.requests_of(account) < share ?", "share > 0 ?", row("R9"), r"the nine lose .*missed"),
    Fault("R10", "launches-what-is-too-late", QUEUE,
          "if (next->deadline <= now) {", "if (next->deadline == TimePoint::min()) {",
          gtest("e2e_test", "RefusalOverTheWireTest.ARequestWhose*"), r"FAILED"),
    Fault("R10", "counts-nobody-who-was-too-late", BATCHER,
          "    metrics_.Expired(Stage::kQueue);\n", "", gtest("e2e_test", "AbandonedCallsTest.*"), r"FAILED"),
    Fault("R11", "never-lets-go-of-a-cancelled-call", UNARY,
          "  if (server_context_.IsCancelled()) cancelled_.store(true, std::memory_order_relaxed);\n  Unref();",
          "  if (server_context_.IsCancelled()) return;\n  Unref();", gtest("e2e_test", "AbandonedCallsTest.*"), r""),
    Fault("R12", "shuts-down-while-calls-arrive", "server/server.cc",
          "  const bool answered = StopReading();", "  const bool answered = false;", row("R12"), r"failed calls .*missed"),
    Fault("R12", "leaves-unix-connections-to-the-shutdown", "server/server.cc",
          "acceptor->connections().ShutDownSentUnix() == 0", "true",
          pytest("test_program.py::test_a_call_that_comes_at_the_end_of_a_drain_may_be_tried_elsewhere"), r"1 failed"),
    Fault("R12", "listens-on-while-it-drains", "server/acceptor.cc",
          "  for (Listener& listener : listeners_) listener.EndListening();\n", "",
          gtest("server_test", "AcceptorTest.EndsAConnectionThatHoldsItUpThoughItAcceptsNoMore"), r"somebody still listens"),
    Fault("R12", "ends-nobody-while-it-drains", "server/acceptor.cc",
          "  eventfd_write(end_accepting_.get(), 1);\n", "  eventfd_write(end_accepting_.get(), 1);\n  eventfd_write(end_looking_.get(), 1);\n",
          gtest("server_test", "AcceptorTest.EndsAConnectionThatHoldsItUpThoughItAcceptsNoMore"), r"nobody ends it"),
    Fault("R13", "tries-once", "client/retry.h",
          "  int max_attempts = 4;", "  int max_attempts = 1;", row("R13"), r"missed"),
    Fault("R14", "reuses-what-a-device-may-write", BATCHER,
          "    for (const auto& task : batch.tasks) pool_.Renew(task->permit);\n", "",
          gtest("e2e_test", "DeviceFaultTest.WhatAFailedDevice*"), r"FAILED"),
    Fault("R14", "serves-on-where-it-should-end", BATCHER,
          "  if (options_.device_lost) options_.device_lost(why);\n", "",
          pytest("test_device_fault.py::test_on_gpu_fault_exit_drains_and_ends_with_a_failure"), r"1 failed"),
    Fault("R15", "starts-without-its-lanes", "server/server.cc",
          "    if (!lane.ok()) return lane.status();\n", "    if (!lane.ok()) break;\n",
          gtest("e2e_test", "DeviceFaultTest.*"), r""),
    Fault("R21", "counts-a-call-twice", UNARY,
          "  context_.metrics.CallStarted(method_);\n", "  context_.metrics.CallStarted(method_);\n  context_.metrics.CallStarted(method_);\n",
          pytest("test_metrics.py::test_counts_equal_the_callers_own"), r"1 failed"),
    Fault("R22", "has-few-threads-for-scrapes", "server/metrics_server.cc",
          '"128",\n                                            "request_timeout_ms", "1000"',
          '"50",\n                                            "request_timeout_ms", "60000"', row("R22"), r""),
    Fault("R24", "inflates-what-comes", CHANNEL,
          "  builder.AddChannelArgument(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0);\n", "",
          pytest("test_bounds.py::test_a_compression_bomb_is_refused_without_being_inflated"), r"1 failed"),
    Fault("R24", "leaves-large-messages-to-grpc", CHANNEL,
          "  builder.SetMaxReceiveMessageSize(static_cast<int>(8 * options.max_receive_message));\n", "  builder.SetMaxReceiveMessageSize(1 << 20);\n",
          pytest("test_bounds.py::test_messages_that_are_refused_are_not_held_against_their_connection"), r"1 failed"),
    Fault("R26", "takes-all-connections", ACCEPTOR,
          "    if (Full()) {", "    if (false) {", row("R26"), r"refused, counted .*missed"),
    Fault("R27", "keeps-streams-that-have-ended", STREAM,
          "  context_.streams.Remove(this);\n  delete this;\n", "  context_.streams.Remove(this);\n", row("R27"), r""),
    Fault("R27", "answers-an-id-twice", STREAM,
          "    if (ids_.insert(id).second) {", "    if (ids_.insert(id); true) {", gtest("e2e_test", "StreamTest.*"), r""),
]
