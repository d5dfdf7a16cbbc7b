// What /metrics says after a known number of calls.

#include <gtest/gtest.h>

#include "grpcpp/generic/generic_stub.h"
#include "tests/support/rpc.h"
#include "tests/support/running_server.h"

namespace nsa::metadata {
namespace {

using testing::Call;
using testing::HttpGet;
using testing::MetricValue;
using testing::RunningServer;

constexpr char kExpand[] =
    "{grpc_method=\"Expand\",grpc_service=\"nsa.metadata.v1.MetadataService\",grpc_type=\"unary\"}";

// /metrics once the server has counted `handled` calls: an answer reaches its caller a little before it is counted.
std::string MetricsAfter(RunningServer& server, double handled) {
  for (;;) {
    const std::string text = HttpGet(server.server().metrics_address(), "/metrics");
    if (MetricValue(text, std::string("grpc_server_handling_seconds_count") + kExpand) >= handled) return text;
  }
}

TEST(MetricsTest, CountCallsStagesBatchesAndRefusals) {
  RunningServer server;
  const auto stub = server.Stub();
  v1::ExpandRequest request;
  request.add_extend_seq_lens(3);
  request.add_seq_lens(10);
  request.set_nsa_index_topk(2048);
  for (int i = 0; i < 7; ++i) ASSERT_TRUE(Call(*stub, request).status.ok());
  request.set_nsa_index_topk(0);
  for (int i = 0; i < 3; ++i) ASSERT_FALSE(Call(*stub, request).status.ok());

  const std::string text = MetricsAfter(server, 10);
  EXPECT_EQ(MetricValue(text, std::string("grpc_server_started_total") + kExpand), 10);
  const std::string handled = "grpc_server_handled_total{grpc_code=\"";
  const std::string rest =
      "\",grpc_method=\"Expand\",grpc_service=\"nsa.metadata.v1.MetadataService\",grpc_type=\"unary\"}";
  EXPECT_EQ(MetricValue(text, handled + "OK" + rest), 7);
  EXPECT_EQ(MetricValue(text, handled + "InvalidArgument" + rest), 3);
  EXPECT_EQ(MetricValue(text, handled + "Internal" + rest), 0);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_refused_total{reason=\"top_k_too_small\"}"), 3);
  for (const char* stage : {"parse", "admit", "queue", "pack", "device", "frame", "send"}) {
    EXPECT_EQ(MetricValue(text, std::string("nsa_metadata_stage_seconds_count{stage=\"") + stage + "\"}"), 7) << stage;
  }
  EXPECT_EQ(MetricValue(text, "nsa_metadata_batch_requests_sum"), 7);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_batch_tokens_sum"), 21);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_kernel_launches_total{kernel=\"cpu\"}"), 7);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_backend_active{backend=\"cpu\"}"), 1);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_backend_active{backend=\"cuda\"}"), 0);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_output_blocks"), 4096);
  EXPECT_GE(MetricValue(text, "nsa_metadata_output_blocks_high_water"), 1);
  EXPECT_EQ(MetricValue(text, "nsa_metadata_limit{name=\"max_tokens\"}"), 4'194'304);
  EXPECT_GT(MetricValue(text, "process_resident_memory_bytes"), 1e6);
}

TEST(MetricsTest, TheObjectivesThresholdIsABucketBound) {
  RunningServer server;
  const std::string text = HttpGet(server.server().metrics_address(), "/metrics");
  const std::string labels(kExpand, sizeof kExpand - 2);
  EXPECT_EQ(MetricValue(text, "grpc_server_handling_seconds_bucket" + labels + ",le=\"0.0128\"}"), 0);
}

TEST(MetricsTest, CountCallsOfUnknownMethodsUnderOneName) {
  RunningServer server;
  grpc::GenericStub stub(server.Connect());
  for (const char* method : {"/nsa.metadata.v1.MetadataService/Contract", "/a/b"}) {
    grpc::ClientContext context;
    grpc::CompletionQueue queue;
    const auto call = stub.PrepareUnaryCall(&context, method, grpc::ByteBuffer(), &queue);
    call->StartCall();
    grpc::ByteBuffer reply;
    grpc::Status status;
    call->Finish(&reply, &status, nullptr);
    void* tag;
    bool ok;
    ASSERT_TRUE(queue.Next(&tag, &ok));
    EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << method;
  }
  const std::string series =
      "grpc_server_handled_total{grpc_code=\"Unimplemented\",grpc_method=\"other\",grpc_service=\"other\",grpc_type="
      "\"unary\"}";
  double counted = 0;
  while (counted < 2) counted = MetricValue(HttpGet(server.server().metrics_address(), "/metrics"), series);
  EXPECT_EQ(counted, 2);
}

TEST(MetricsTest, OtherPathsAreNotFound) {
  RunningServer server;
  EXPECT_NE(HttpGet(server.server().metrics_address(), "/metricsx").find(" 404 "), std::string::npos);
  EXPECT_NE(HttpGet(server.server().metrics_address(), "/healthz").find(" 200 "), std::string::npos);
}

}  // namespace
}  // namespace nsa::metadata
