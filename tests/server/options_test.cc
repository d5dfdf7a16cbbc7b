#include "server/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "server/address.h"
#include "server/limits.h"
#include "server/output_pool.h"

namespace nsa::metadata::server {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Expects the options, changed by `change`, to be refused with a message that names flag and value.
void ExpectRefused(const std::function<void(Options&)>& change, const std::string& flag, const std::string& value) {
  Options options;
  change(options);
  const absl::Status status = Validate(options);
  EXPECT_TRUE(absl::IsInvalidArgument(status)) << flag << ": " << status;
  EXPECT_THAT(std::string(status.message()), AllOf(HasSubstr("--" + flag), HasSubstr(value)));
}

TEST(OptionsTest, DefaultsAreValid) { EXPECT_TRUE(Validate({}).ok()) << Validate({}); }

TEST(OptionsTest, NamesTheFlagAndTheValueItRefuses) {
  ExpectRefused([](Options& o) { o.request.max_tokens = 0; }, "max_tokens", "=0");
  ExpectRefused([](Options& o) { o.request.max_sequences = -5; }, "max_sequences", "=-5");
  ExpectRefused([](Options& o) { o.request.max_unary_reply_bytes = o.request.max_reply_bytes + 1; },
                "max_unary_reply_bytes", "67108865");
  ExpectRefused([](Options& o) { o.batch.max_batch_sequences = 10; }, "max_batch_sequences", "=10");
  ExpectRefused([](Options& o) { o.batch.batch_delay = absl::Milliseconds(-1); }, "batch_delay", "-1ms");
  ExpectRefused([](Options& o) { o.output_budget_bytes = 4096; }, "output_budget_bytes", "=4096");
  ExpectRefused([](Options& o) { o.connection.handshake_timeout = absl::ZeroDuration(); }, "handshake_timeout", "0");
  ExpectRefused([](Options& o) { o.connection.keepalive_time = absl::Milliseconds(1); }, "keepalive_time", "1ms");
  ExpectRefused([](Options& o) { o.connection.max_receive_message *= 2; }, "max_undelivered_bytes", "4194304");
  ExpectRefused([](Options& o) { o.max_rpc_duration = absl::InfiniteDuration(); }, "max_rpc_duration", "inf");
  ExpectRefused([](Options& o) { o.backend = "gpu"; }, "backend", "gpu");
  ExpectRefused([](Options& o) { o.on_gpu_fault = "panic"; }, "on_gpu_fault", "=panic");
  ExpectRefused([](Options& o) { o.gpu_timeout = absl::ZeroDuration(); }, "gpu_timeout", "=0");
  ExpectRefused([](Options& o) { o.write_stall_timeout = absl::ZeroDuration(); }, "write_stall_timeout", "=0");
  ExpectRefused([](Options& o) { o.stream_idle_timeout = absl::ZeroDuration(); }, "stream_idle_timeout", "=0");
  ExpectRefused([](Options& o) { o.lengths_budget_bytes = 1000; }, "lengths_budget_bytes", "=1000");
  ExpectRefused([](Options& o) { o.caller_share = 0; }, "caller_share", "=0");
  ExpectRefused([](Options& o) { o.caller_share = 1.5; }, "caller_share", "=1.5");
  ExpectRefused([](Options& o) { o.trusted_proxies = {"10.0.0.0/99"}; }, "trusted_proxies", "10.0.0.0/99");
  ExpectRefused([](Options& o) { o.caller_metadata = "X-Caller"; }, "caller_metadata", "X-Caller");
  ExpectRefused([](Options& o) { o.caller_metadata = "x-caller"; }, "trusted_proxies", "");
  ExpectRefused([](Options& o) { o.hold_answers = "yes"; }, "hold_answers", "=yes");
  ExpectRefused([](Options& o) { o.log_format = "xml"; }, "log_format", "=xml");
  ExpectRefused([](Options& o) { o.slow_call_threshold = absl::Seconds(-1); }, "slow_call_threshold", "-1s");
  ExpectRefused([](Options& o) { o.listen = {}; }, "listen", "");
  ExpectRefused([](Options& o) { o.listen = {"127.0.0.1"}; }, "listen", "127.0.0.1");
  ExpectRefused([](Options& o) { o.metrics_listen = "unix:/tmp/x"; }, "metrics_listen", "unix:/tmp/x");
}

TEST(OptionsTest, PlainTextBeyondTheLoopbackMustBeAllowed) {
  ExpectRefused([](Options& o) { o.listen = {"0.0.0.0:50051"}; }, "listen", "0.0.0.0:50051");
  Options options;
  options.listen = {"0.0.0.0:50051", "[::]:1", "unix:/tmp/x"};
  options.allow_plaintext = true;
  EXPECT_TRUE(Validate(options).ok()) << Validate(options);
}

TEST(OptionsTest, ResolveReplacesWhatStandsForThisMachine) {
  const Options options = Resolve({});
  EXPECT_GE(options.completion_queues, 1);
  EXPECT_NE(options.hold_answers, "auto");
  EXPECT_GE(options.connection.max_connections, 1);
  EXPECT_EQ(options.output_budget_bytes % OutputPool::kBlockBytes, 0);
}

TEST(AddressTest, ReadsEveryForm) {
  EXPECT_EQ(ParseAddress("127.0.0.1:0")->ToString(), "127.0.0.1:0");
  EXPECT_EQ(ParseAddress("[::1]:65535")->ToString(), "[::1]:65535");
  EXPECT_EQ(ParseAddress("localhost:80")->port, 80);
  EXPECT_EQ(ParseAddress("unix:/run/x.sock")->host, "/run/x.sock");
}

TEST(AddressTest, SaysWhatIsWrong) {
  for (const char* text : {"", "host", "host:", "host:x", "host:65536", ":1", "::1:1", "unix:", "host:-1"}) {
    const auto address = ParseAddress(text);
    ASSERT_FALSE(address.ok()) << text;
    EXPECT_THAT(std::string(address.status().message()), HasSubstr("'" + std::string(text) + "'"));
  }
  EXPECT_FALSE(ParseAddress("unix:" + std::string(200, 'x')).ok());
}

TEST(AddressTest, KnowsWhatOnlyThisMachineReaches) {
  for (const char* text : {"127.0.0.1:1", "127.9.9.9:1", "[::1]:1", "localhost:1", "unix:/x"}) {
    EXPECT_TRUE(ParseAddress(text)->IsLocal()) << text;
  }
  for (const char* text : {"0.0.0.0:1", "10.0.0.1:1", "[::]:1", "[fe80::1]:1", "example.org:1"}) {
    EXPECT_FALSE(ParseAddress(text)->IsLocal()) << text;
  }
}

TEST(LimitsTest, EveryLimitThatClientsAreToldIsAMetricToo) {
  const Options options = Resolve({});
  const v1::Limits limits = ToProto(options);
  EXPECT_EQ(limits.max_tokens(), 4'194'304);
  EXPECT_EQ(limits.max_rpc_duration().seconds(), 30);
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  limits.GetReflection()->ListFields(limits, &fields);
  EXPECT_EQ(fields.size(), static_cast<size_t>(v1::Limits::descriptor()->field_count())) << "a limit is not told";
  EXPECT_EQ(NamedLimits(options).size(), fields.size());
}

}  // namespace
}  // namespace nsa::metadata::server
