// nsa-metadata-soak-load: calls a server so many times, with requests of log-uniform sizes; 1 % are cancelled, 1 % have
// a deadline of 1 ms, and the connection is made anew now and then. Every reply is compared. Prints "done N" a hundred
// times, then the calls by status.

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "grpcpp/create_channel.h"
#include "tests/support/load.h"

ABSL_FLAG(std::string, target, "", "The server, as host:port");
ABSL_FLAG(int64_t, calls, 1'000'000, "How many calls");

namespace nsa::metadata::testing {
namespace {

constexpr int64_t kReconnectEvery = 10'000;
constexpr double kMostTokens = 4'096;

std::vector<TestRequest> Requests() {
  std::mt19937_64 random(5);
  std::uniform_real_distribution<double> exponent(0, std::log(kMostTokens));
  std::vector<TestRequest> requests(256);
  for (TestRequest& request : requests) {
    auto tokens = static_cast<int32_t>(std::exp(exponent(random)));
    request.spec = {.nsa_index_topk = 64,
                    .mode = kernels::SequenceMode::kCausal,
                    .outputs = {kernels::Output::kSeqlensExpanded, kernels::Output::kNsaCacheSeqlens}};
    while (tokens > 0) {
      const int32_t share = 1 + static_cast<int32_t>(random() % static_cast<uint64_t>(tokens));
      request.extend_seq_lens.push_back(share);
      request.seq_lens.push_back(share + static_cast<int32_t>(random() % 1'000));
      tokens -= share;
    }
  }
  return requests;
}

std::unique_ptr<v1::MetadataService::Stub> Connect(const std::string& target) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return v1::MetadataService::NewStub(grpc::CreateCustomChannel(target, grpc::InsecureChannelCredentials(), arguments));
}

Load::Treatment Draw(std::mt19937_64& random) {
  const uint64_t drawn = random() % 100;
  if (drawn == 0) return {.deadline = std::chrono::milliseconds(1)};
  return {.cancel = drawn == 1};
}

int Run() {
  const std::string target = absl::GetFlag(FLAGS_target);
  const int64_t calls = absl::GetFlag(FLAGS_calls);
  Load load(Connect(target), Requests());
  load.Run(calls, &Draw, [&](int64_t ended) {
    if (ended % kReconnectEvery == 0) load.Use(Connect(target));
    if (ended % std::max<int64_t>(calls / 100, 1) != 0) return;
    load.late_us.clear();
    std::printf("done %lld\n", static_cast<long long>(ended));
    std::fflush(stdout);
  });
  for (size_t code = 0; code < load.codes.size(); ++code) {
    if (load.codes[code] > 0) std::printf("status %zu: %lld\n", code, static_cast<long long>(load.codes[code]));
  }
  std::printf("wrong: %lld\n", static_cast<long long>(load.wrong));
  return load.wrong == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}

}  // namespace
}  // namespace nsa::metadata::testing

int main(int argc, char** argv) {
  absl::ParseCommandLine(argc, argv);
  return nsa::metadata::testing::Run();
}
