// Runs the program nsa-metadata against a server in this process.
#include "tests/client/program.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "absl/synchronization/notification.h"
#include "tests/client/fake_server.h"

namespace nsa::metadata::client {
namespace {

using ::testing::HasSubstr;

std::string Expand(const FakeServer& server, const std::string& more = "") {
  return "expand --target " + server.target() + " --extend_seq_lens 3,2 --seq_lens 10,4 --mode causal " + more;
}

// Answers right but for one value.
FakeServer::ExpandFunction OneValueWrong() {
  return [](const v1::ExpandRequest& request, v1::ExpandResponse& response) {
    response.set_request_id(request.request_id());
    response.set_total_tokens(5);
    response.set_mode(v1::SEQUENCE_MODE_CAUSAL);
    for (const int32_t value : {8, 9, 11, 3, 4}) {
      response.add_seqlens_expanded(value);
      response.add_nsa_cache_seqlens(value);
    }
    return grpc::Status::OK;
  };
}

// A trace of two invocations in a file of this test's own.
class TraceFile {
 public:
  TraceFile() : path_(::testing::TempDir() + "nsa_metadata_trace_XXXXXX") {
    close(mkstemp(path_.data()));
    std::ofstream(path_) << "TIMESTAMP,ContextTokens,GeneratedTokens\n"
                            "2023-11-16 18:15:46.00,100,2\n"
                            "2023-11-16 18:15:46.025,50,1\n";
  }
  ~TraceFile() { std::remove(path_.c_str()); }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

TEST(ProgramTest, ExpandPrintsARowAToken) {
  FakeServer server;
  const Outcome outcome = RunProgram(Expand(server, "--outputs seqlens_expanded,ks,cu_seqlens_k --verify"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(outcome.output,
            "t  batch  seqlens_expanded  ks\n"
            "0      0                 8   0\n"
            "1      0                 9   0\n"
            "2      0                10   0\n"
            "3      1                 3  10\n"
            "4      1                 4  10\n"
            "cu_seqlens_k: 0 10 14\n");
}

TEST(ProgramTest, ExpandPrintsJson) {
  FakeServer server;
  const Outcome outcome = RunProgram(Expand(server, "--json"));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_EQ(outcome.output,
            "{\"request_id\":0,\"total_tokens\":5,\"mode\":\"SEQUENCE_MODE_CAUSAL\","
            "\"seqlens_expanded\":[8,9,10,3,4],\"nsa_cache_seqlens\":[8,9,10,3,4]}\n");
}

TEST(ProgramTest, ExpandCutsALongTableUnlessAskedForAll) {
  FakeServer server;
  const std::string command =
      "expand --target " + server.target() + " --extend_seq_lens 70 --seq_lens 70 --mode repeat";
  EXPECT_THAT(RunProgram(command).output, HasSubstr("… 6 more\n"));
  EXPECT_THAT(RunProgram(command + " --all_rows").output, HasSubstr("\n69 "));
}

TEST(ProgramTest, ExpandTakesAnEmptyBatch) {
  FakeServer server;
  const Outcome outcome = RunProgram("expand --target " + server.target() +
                                     " --extend_seq_lens '' --seq_lens '' --mode repeat --outputs all --verify");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("cu_seqlens_q: 0\n"));
}

TEST(ProgramTest, ExpandSendsLengthsThatOnlyTheServerMayRefuse) {
  FakeServer server([](const v1::ExpandRequest& request, v1::ExpandResponse&) {
    return Refusal(grpc::StatusCode::INVALID_ARGUMENT, "NEGATIVE_LENGTH", "seq_lens[1]", request.seq_lens(1), 0);
  });
  const Outcome outcome =
      RunProgram("expand --json --target " + server.target() + " --extend_seq_lens 3,2 --seq_lens 10,-4 --mode causal");
  EXPECT_EQ(outcome.exit_code, 4) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("\"field\":\"seq_lens[1]\",\"value\":-4,\"limit\":0"));
}

TEST(ProgramTest, WrongBytesEndWithOne) {
  FakeServer server(OneValueWrong());
  const Outcome outcome = RunProgram(Expand(server, "--verify"));
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("wrong: seqlens_expanded[2]: got 11, want 10"));
}

TEST(ProgramTest, UsageErrorsEndWithTwo) {
  FakeServer server;
  for (const std::string arguments :
       {"", "juggle", "expand --extend_seq_lens 1 --seq_lens 1",
        "expand --extend_seq_lens 1,x --seq_lens 1 --mode causal",
        "expand --extend_seq_lens 1 --seq_lens 1 --mode sideways",
        "expand --extend_seq_lens 1 --seq_lens 1 --mode causal --outputs everything",
        "expand --extend_seq_lens 1 --seq_lens 1 --mode causal --timeout soon", "replay --trace /nowhere/trace.csv",
        "replay --trace x --in_flight 0", "replay --trace x --streams 2", "replay --trace x --stream --streams 0",
        "health --service"}) {
    const Outcome outcome = RunProgram(arguments);
    EXPECT_EQ(outcome.exit_code, 2) << "for \"" << arguments << "\": " << outcome.output;
  }
}

TEST(ProgramTest, AnUnreachableServerEndsWithThree) {
  std::string target;
  {
    const FakeServer gone;
    target = gone.target();
  }
  const TraceFile trace;
  EXPECT_EQ(RunProgram("expand --extend_seq_lens 1 --seq_lens 1 --mode causal --target " + target).exit_code, 3);
  EXPECT_EQ(RunProgram("replay --trace " + trace.path() + " --target " + target).exit_code, 3);
  EXPECT_EQ(RunProgram("health --target " + target).exit_code, 3);
}

TEST(ProgramTest, ARefusalEndsWithFourAndSaysWhy) {
  FakeServer server([](const v1::ExpandRequest&, v1::ExpandResponse&) {
    return Refusal(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "", 4096, 4096, /*retry_after_seconds=*/1);
  });
  const Outcome text = RunProgram(Expand(server));
  EXPECT_EQ(text.exit_code, 4) << text.output;
  EXPECT_EQ(text.output, "UNAVAILABLE: refused: QUEUE_FULL (reason QUEUE_FULL, try again after 1s)\n");
  const Outcome json = RunProgram(Expand(server, "--json"));
  EXPECT_EQ(json.exit_code, 4) << json.output;
  EXPECT_EQ(json.output,
            "{\"error\":{\"code\":\"UNAVAILABLE\",\"message\":\"refused: QUEUE_FULL\",\"reason\":\"QUEUE_FULL\","
            "\"field\":\"\",\"value\":4096,\"limit\":4096,\"retry_after_s\":1}}\n");
}

TEST(ProgramTest, ADeadlineEndsWithFive) {
  absl::Notification release;
  FakeServer server([&](const v1::ExpandRequest&, v1::ExpandResponse&) {
    release.WaitForNotification();
    return grpc::Status::OK;
  });
  const Outcome outcome = RunProgram(Expand(server, "--timeout 100ms"));
  release.Notify();
  EXPECT_EQ(outcome.exit_code, 5) << outcome.output;
}

TEST(ProgramTest, ReplayCountsStepsTokensAndReplies) {
  FakeServer server;
  const TraceFile trace;
  const Outcome outcome = RunProgram("replay --verify --json --target " + server.target() + " --trace " + trace.path());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("{\"steps\":4,\"requests\":4,\"ok\":4,\"tokens\":"));
  EXPECT_THAT(outcome.output,
              HasSubstr("\"verified\":true,\"wrong\":0,\"differences\":[],\"refused\":{},\"errors\":{}"));
  const Outcome first = RunProgram("replay --max_steps 1 --target " + server.target() + " --trace " + trace.path());
  EXPECT_EQ(first.exit_code, 0) << first.output;
  EXPECT_THAT(first.output, HasSubstr("replies   1 with 100 tokens\n"));
}

TEST(ProgramTest, ReplayOverStreamsSendsTheSameSteps) {
  FakeServer server;
  const TraceFile trace;
  const Outcome outcome = RunProgram("replay --stream --streams 3 --verify --json --target " + server.target() +
                                     " --trace " + trace.path());
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("{\"steps\":4,\"requests\":4,\"ok\":4,\"tokens\":"));
  EXPECT_THAT(outcome.output,
              HasSubstr("\"verified\":true,\"wrong\":0,\"differences\":[],\"refused\":{},\"errors\":{}"));
  EXPECT_EQ(server.calls(), 0);
  EXPECT_EQ(server.streams(), 3);
}

TEST(ProgramTest, ReplayOverAStreamCountsRefusalsAndWrongReplies) {
  FakeServer refusing([](const v1::ExpandRequest&, v1::ExpandResponse&) {
    return Refusal(grpc::StatusCode::INVALID_ARGUMENT, "TOO_MANY_TOKENS", "", 100, 10);
  });
  const TraceFile trace;
  const std::string command = "replay --stream --verify --trace " + trace.path() + " --target ";
  const Outcome refused = RunProgram(command + refusing.target());
  EXPECT_EQ(refused.exit_code, 4) << refused.output;
  EXPECT_THAT(refused.output, HasSubstr("refused   TOO_MANY_TOKENS 4\n"));

  FakeServer wrong([](const v1::ExpandRequest& request, v1::ExpandResponse& response) {
    response = ReferenceOf(request);
    response.set_seqlens_expanded(0, 0);
    return grpc::Status::OK;
  });
  const Outcome outcome = RunProgram(command + wrong.target());
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("seqlens_expanded[0]: got 0, want 1\n"));
  EXPECT_THAT(outcome.output, HasSubstr("wrong     4\n"));
}

TEST(ProgramTest, ReplayReplacesAStreamThatEnded) {
  // Each stream takes one item.
  FakeServer server(nullptr, [](FakeStream& stream) {
    WriteTo(stream, ChunksOf(ReferenceOf(ReadFrom(stream).expand()), 7));
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "draining");
  });
  const TraceFile trace;
  const Outcome outcome = RunProgram("replay --stream --in_flight 1 --verify --json --target " + server.target() +
                                     " --trace " + trace.path());
  EXPECT_THAT(outcome.output, HasSubstr("{\"steps\":4,\"requests\":4,"));
  EXPECT_GE(server.streams(), 2);
}

TEST(ProgramTest, ReplayCountsRefusalsByReason) {
  FakeServer server([](const v1::ExpandRequest&, v1::ExpandResponse&) {
    return Refusal(grpc::StatusCode::INVALID_ARGUMENT, "TOO_MANY_TOKENS", "", 100, 10);
  });
  const TraceFile trace;
  const Outcome outcome = RunProgram("replay --target " + server.target() + " --trace " + trace.path());
  EXPECT_EQ(outcome.exit_code, 4) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("refused   TOO_MANY_TOKENS 4\n"));
}

TEST(ProgramTest, ReplayShowsHowWrongRepliesDiffer) {
  FakeServer server(OneValueWrong());
  const TraceFile trace;
  const Outcome outcome = RunProgram("replay --verify --target " + server.target() + " --trace " + trace.path());
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("total_tokens: got 5, want 100"));
  EXPECT_THAT(outcome.output, HasSubstr("wrong     4\n"));
}

TEST(ProgramTest, HealthPrintsTheState) {
  FakeServer server;
  const Outcome serving = RunProgram("health --target " + server.target());
  EXPECT_EQ(serving.exit_code, 0) << serving.output;
  EXPECT_EQ(serving.output, "SERVING\n");
  server.SetServing(false);
  const Outcome not_serving = RunProgram("health --json --target " + server.target());
  EXPECT_EQ(not_serving.exit_code, 3) << not_serving.output;
  EXPECT_EQ(not_serving.output, "{\"status\":\"NOT_SERVING\"}\n");
}

TEST(ProgramTest, HealthOfAnUnknownServiceIsARefusal) {
  FakeServer server;
  const Outcome outcome = RunProgram("health --service no.such.Service --target " + server.target());
  EXPECT_EQ(outcome.exit_code, 4) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("NOT_FOUND"));
}

}  // namespace
}  // namespace nsa::metadata::client
