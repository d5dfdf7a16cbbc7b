// Runs nsa-metadata bench against a server in this process.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <climits>
#include <cstdlib>
#include <string>
#include <thread>

#include "tests/client/fake_server.h"
#include "tests/client/program.h"

namespace nsa::metadata::client {
namespace {

using ::testing::HasSubstr;

std::string Bench(const std::string& target, const std::string& more = "") {
  return "bench --target " + target + " --duration 300ms --warm_up 0s " + more;
}

// The number after "name": in JSON, or after name in text.
double Number(const std::string& output, const std::string& name) {
  const std::string member = "\"" + name + "\":";
  const size_t in_json = output.find(member);
  const size_t at = in_json != std::string::npos ? in_json + member.size() : output.find(name);
  EXPECT_NE(at, std::string::npos) << name << " is not in:\n" << output;
  if (at == std::string::npos) return -1;
  return std::strtod(output.c_str() + (in_json != std::string::npos ? at : at + name.size()), nullptr);
}

TEST(BenchProgramTest, CountsRightRepliesOfEveryKindOfLoad) {
  FakeServer server;
  for (const char* load :
       {"--in_flight 8 --channels 2", "--in_flight 8 --channels 2 --streams 2", "--rate 200 --in_flight 8"}) {
    const Outcome outcome = RunProgram(Bench(server.target(), std::string("--json ") + load));
    EXPECT_EQ(outcome.exit_code, 0) << load << "\n" << outcome.output;
    EXPECT_EQ(Number(outcome.output, "wrong"), 0) << load;
    EXPECT_GT(Number(outcome.output, "ok"), 0) << load;
    EXPECT_EQ(Number(outcome.output, "reply_bytes"), 142) << load;
    EXPECT_EQ(Number(outcome.output, "ok"), Number(outcome.output, "requests")) << load << "\n" << outcome.output;
  }
}

// Not only the first reply, which is decoded, but any of those that are compared as bytes.
TEST(BenchProgramTest, FindsOneWrongValueInOneReplyAmongMany) {
  for (const char* load : {"", "--streams 1"}) {
    std::atomic<int> replies = 0;
    FakeServer server([&replies](const v1::ExpandRequest& request, v1::ExpandResponse& response) {
      response = ReferenceOf(request);
      if (++replies == 20) response.set_nsa_cache_seqlens(15, response.nsa_cache_seqlens(15) ^ 1);
      return grpc::Status::OK;
    });
    const Outcome outcome = RunProgram(Bench(server.target(), load));
    EXPECT_EQ(outcome.exit_code, 1) << load << "\n" << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr("wrong: nsa_cache_seqlens[15]"));
    EXPECT_EQ(Number(outcome.output, "\nwrong"), 1) << outcome.output;
  }
}

TEST(BenchProgramTest, TellsRepliesToAnotherRequestFromItsOwn) {
  FakeServer server([](const v1::ExpandRequest& request, v1::ExpandResponse& response) {
    response = ReferenceOf(request);
    response.set_request_id(request.request_id() + 1);
    return grpc::Status::OK;
  });
  const Outcome outcome = RunProgram(Bench(server.target()));
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("request_id: got 16385, want 16384"));
}

TEST(BenchProgramTest, AnAnswerToAnItemThatWasNeverSentIsAWrongOne) {
  FakeServer server(nullptr, [](FakeStream& stream) {
    v1::ExpandResponse answer = ReferenceOf(ReadFrom(stream).expand());
    answer.set_request_id(7);
    WriteTo(stream, ChunksOf(answer, 0));
    for (v1::ExpandStreamRequest more; stream.Read(&more);) {
    }
    return grpc::Status::OK;
  });
  const Outcome outcome = RunProgram(Bench(server.target(), "--streams 1"));
  EXPECT_EQ(outcome.exit_code, 1) << outcome.output;
  EXPECT_THAT(outcome.output, HasSubstr("wrong: an answer to request_id 7, never sent"));
}

TEST(BenchProgramTest, CountsRefusalsByReasonAndEndsWithFour) {
  FakeServer server([](const v1::ExpandRequest&, v1::ExpandResponse&) {
    return Refusal(grpc::StatusCode::UNAVAILABLE, "QUEUE_FULL", "", 4096, 4096, /*retry_after_seconds=*/1);
  });
  // The fake server's streams give one reason for every refusal.
  for (const auto& [load, reason] : {std::pair("", "QUEUE_FULL"), std::pair("--streams 1", "TOO_MANY_TOKENS")}) {
    const Outcome outcome = RunProgram(Bench(server.target(), load));
    EXPECT_EQ(outcome.exit_code, 4) << load << "\n" << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr(reason));
    EXPECT_EQ(Number(outcome.output, "\nreplies"), 0) << outcome.output;
  }
}

TEST(BenchProgramTest, EndsAtOnceWithThreeWhereNobodyAnswers) {
  std::string target;
  {
    FakeServer server;
    target = server.target();
  }
  for (const char* load : {"", "--streams 2 --in_flight 4", "--rate 100 --in_flight 2"}) {
    const Outcome outcome = RunProgram("bench --target " + target + " --warm_up 0s --duration 300ms " + load);
    EXPECT_EQ(outcome.exit_code, 3) << load << "\n" << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr("UNAVAILABLE"));
  }
}

TEST(BenchProgramTest, GoesOnWhereNowAndThenACallReachesNoServer) {
  std::atomic<int> calls = 0;
  FakeServer server([&](const v1::ExpandRequest& request, v1::ExpandResponse& response) {
    if (++calls % 5 == 0) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "the connection is cut");
    response = ReferenceOf(request);
    return grpc::Status::OK;
  });
  for (const char* load : {"--in_flight 2", "--rate 200 --in_flight 2"}) {
    const Outcome outcome = RunProgram("bench --target " + server.target() + " --warm_up 0s --duration 300ms " + load);
    EXPECT_EQ(outcome.exit_code, 3) << load << "\n" << outcome.output;
    EXPECT_GE(Number(outcome.output, "\nreplies"), 20) << load << "\n" << outcome.output;
    EXPECT_GE(Number(outcome.output, "\ntime"), 0.29) << load << "\n" << outcome.output;
  }
}

TEST(BenchProgramTest, SaysHowManyInFlightAStreamThatEndsEarlyTakesWithIt) {
  std::atomic<int> streams = 0;
  FakeServer server(nullptr, [&](FakeStream& stream) {
    int items_left = ++streams == 1 ? 3 : INT_MAX;
    for (v1::ExpandStreamRequest item; items_left > 0 && stream.Read(&item); --items_left) {
      WriteTo(stream, ChunksOf(ReferenceOf(item.expand()), 0));
    }
    return grpc::Status::OK;
  });
  const Outcome outcome = RunProgram("bench --target " + server.target() +
                                     " --warm_up 0s --duration 300ms --streams 2 --channels 2 --in_flight 4");
  EXPECT_EQ(outcome.exit_code, 3) << outcome.output;
  EXPECT_THAT(outcome.output,
              HasSubstr("\ngave up   2 of 4 in flight: no server was reached, or their stream had ended\n"));
  EXPECT_GE(Number(outcome.output, "\ntime"), 0.29) << outcome.output;
  EXPECT_GE(Number(outcome.output, "\nreplies"), 20) << "the other stream goes on\n" << outcome.output;
}

TEST(BenchProgramTest, ALoadThatEndsEarlySaysSoByItsTime) {
  FakeServer server([](const v1::ExpandRequest&, v1::ExpandResponse&) {
    return grpc::Status(grpc::StatusCode::UNAVAILABLE, "gone");
  });
  for (const char* warm_up : {"0s", "1s"}) {
    const Outcome outcome =
        RunProgram("bench --target " + server.target() + " --duration 5s --in_flight 3 --json --warm_up " + warm_up);
    EXPECT_EQ(outcome.exit_code, 3) << outcome.output;
    EXPECT_LT(Number(outcome.output, "wall_s"), 4) << outcome.output;
    EXPECT_EQ(Number(outcome.output, "given_up"), 3) << outcome.output;
    EXPECT_LT(Number(outcome.output, "calls_per_s"), 1e7) << outcome.output;
  }
}

// Requests that come due while the server hangs count from when they were due.
TEST(BenchProgramTest, AHangShowsInTheLatenciesOfAllThatCameDueMeanwhile) {
  constexpr auto kHang = std::chrono::milliseconds(300);
  std::atomic<int> calls = 0;
  FakeServer server([&](const v1::ExpandRequest& request, v1::ExpandResponse& response) {
    if (++calls == 10) std::this_thread::sleep_for(kHang);
    response = ReferenceOf(request);
    return grpc::Status::OK;
  });
  const Outcome outcome =
      RunProgram("bench --target " + server.target() + " --warm_up 0s --duration 600ms --rate 100 --in_flight 1");
  EXPECT_EQ(outcome.exit_code, 0) << outcome.output;
  EXPECT_GE(Number(outcome.output, "\nwaited"), 20) << outcome.output;
  EXPECT_EQ(Number(outcome.output, "\nrequests"), 60) << outcome.output;
  EXPECT_GE(Number(outcome.output, " p90"), 150'000) << "30 of 60 came due within 300 ms\n" << outcome.output;
}

TEST(BenchProgramTest, SaysWhichFlagIsOutOfRange) {
  const struct {
    const char* flags;
    const char* says;
  } cases[] = {{"--in_flight 101", "in_flight is 101, want at most 100 for each of the channels"},
               {"--reply_bytes 20", "reply_bytes is 20, less than the reply for a token in each of num_sequences 4"},
               {"--total_tokens 3", "total_tokens is 3, less than a token for each of num_sequences 4"},
               {"--channels 0", "channels is 0, want 1 to 1024"},
               {"--duration 0", "duration is 0, want more than 0"},
               {"--rate -1", "rate is -1, want 0 to 10000000"}};
  for (const auto& [flags, says] : cases) {
    const Outcome outcome = RunProgram(std::string("bench --target 127.0.0.1:1 ") + flags);
    EXPECT_EQ(outcome.exit_code, 2) << flags << "\n" << outcome.output;
    EXPECT_THAT(outcome.output, HasSubstr(says));
  }
}

}  // namespace
}  // namespace nsa::metadata::client
