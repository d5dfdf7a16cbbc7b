// How an ExpandStream ends: closed, early, or at a fault.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "client/reference.h"
#include "client/status.h"
#include "tests/client/stream_fixture.h"

namespace nsa::metadata::client {
namespace {

TEST(ExpandStreamEndTest, TakesNothingOnceClosed) {
  StreamFixture fixture(nullptr);
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  EXPECT_EQ(fixture.Send(1).code(), absl::StatusCode::kFailedPrecondition);
  fixture.stream->Cancel(1);
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
}

TEST(ExpandStreamEndTest, WhenTheCallEndsEarlyEveryUnansweredItemGetsItsStatus) {
  StreamFixture fixture([](FakeStream& stream) {
    WriteTo(stream, ChunksOf(ReadAndExpand(stream), 0));
    stream.Write(ChunksOf(ReadAndExpand(stream), 1)[0]);
    ReadFrom(stream);
    return Refusal(grpc::StatusCode::UNAVAILABLE, "DRAINING", "", 0, 0, /*retry_after_seconds=*/1);
  });
  fixture.SendAll(3);
  fixture.outcomes.Await(3);
  EXPECT_EQ(fixture.outcomes.DifferenceOf(0), "");
  for (const uint64_t id : {1, 2}) {
    const absl::Status status = fixture.outcomes.Of(id).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
    const auto violation = ViolationOf(status);
    ASSERT_TRUE(violation.has_value()) << status;
    EXPECT_EQ(violation->reason, v1::REFUSAL_REASON_DRAINING);
    EXPECT_EQ(violation->retry_after, absl::Seconds(1));
  }
  EXPECT_EQ(fixture.Send(3).code(), absl::StatusCode::kUnavailable) << "and so does what comes after";
  EXPECT_EQ(fixture.stream->Close().code(), absl::StatusCode::kUnavailable);
}

TEST(ExpandStreamEndTest, ACallThatEndsBeforeItsFirstAnswerIsBegunAgain) {
  std::atomic<int> calls = 0;
  StreamFixture fixture(
      [&](FakeStream& stream) {
        const v1::ExpandResponse answer = ReadAndExpand(stream);
        if (++calls < 3) return grpc::Status(grpc::StatusCode::UNAVAILABLE, "not now");
        WriteTo(stream, ChunksOf(answer, 2));
        return grpc::Status::OK;
      },
      {.retry = {.initial_backoff = absl::Milliseconds(1), .max_backoff = absl::Milliseconds(2)}});
  fixture.SendAll(1);
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  EXPECT_EQ(fixture.outcomes.DifferenceOf(0), "");
  EXPECT_EQ(calls, 3);
}

TEST(ExpandStreamEndTest, AServerThatIsNotThereIsUnavailableWithoutAViolation) {
  std::string target;
  {
    const FakeServer gone;
    target = gone.target();
  }
  const auto stream = *(*Client::Connect(target, {.retry = {.max_attempts = 1}}))->OpenStream();
  Outcomes outcomes;
  // The call may have ended by now.
  const absl::Status sent = stream->Send(StreamedRequest(1), outcomes.For(1));
  if (sent.ok()) outcomes.Await(1);
  const absl::Status status = sent.ok() ? outcomes.Of(1).status() : sent;
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  EXPECT_FALSE(ViolationOf(status).has_value());
}

TEST(ExpandStreamEndTest, AServerThatEndsTheCallWithoutItsAnswersIsAtFault) {
  StreamFixture fixture([](FakeStream& stream) {
    ReadFrom(stream);
    return grpc::Status::OK;
  });
  fixture.SendAll(1);
  fixture.outcomes.Await(1);
  EXPECT_EQ(fixture.outcomes.Of(0).status().code(), absl::StatusCode::kInternal);
}

TEST(ExpandStreamEndTest, AnswersThatBreakTheContractEndTheCall) {
  const auto end_with = [](const std::vector<v1::ExpandStreamResponse>& messages) {
    StreamFixture fixture([&](FakeStream& stream) {
      ReadFrom(stream);
      WriteTo(stream, messages);
      ReadToTheEnd(stream);
      return grpc::Status::OK;
    });
    fixture.SendAll(1);
    fixture.outcomes.Await(1);
    EXPECT_EQ(fixture.outcomes.Of(0).status(), fixture.stream->Close());
    return fixture.outcomes.Of(0).status();
  };
  const auto chunks = ChunksOf(Reference(StreamedRequest(0)), 2);
  EXPECT_EQ(end_with({chunks[0], chunks[2]}),
            absl::InternalError("the server's chunks of request_id 0 don't fit: first_token 4, want 2"));
  EXPECT_EQ(end_with(ChunksOf(Reference(StreamedRequest(1)), 0)),
            absl::InternalError("the server sent an answer to request_id 1, which is not in flight"));
  EXPECT_EQ(end_with({v1::ExpandStreamResponse()}), absl::InternalError("the server sent a message without a result"));
}

TEST(ExpandStreamEndTest, ItsDestructorWaitsForTheAnswers) {
  StreamFixture fixture([](FakeStream& stream) {
    std::vector<v1::ExpandResponse> answers;
    for (int i = 0; i < 3; ++i) answers.push_back(ReadAndExpand(stream));
    // Until the caller sends no more.
    ReadToTheEnd(stream);
    for (const v1::ExpandResponse& answer : answers) WriteTo(stream, ChunksOf(answer, 1));
    return grpc::Status::OK;
  });
  fixture.SendAll(3);
  fixture.client.reset();
  fixture.stream.reset();
  for (uint64_t id = 0; id < 3; ++id) EXPECT_EQ(fixture.outcomes.DifferenceOf(id), "");
}

TEST(ExpandStreamEndTest, ItsDestructorGivesUpWhatIsNeverAnswered) {
  absl::Notification release;
  StreamFixture fixture(
      [&](FakeStream& stream) {
        WriteTo(stream, ChunksOf(ReadAndExpand(stream), 0));
        release.WaitForNotification();
        return grpc::Status::OK;
      },
      {.timeout = absl::Milliseconds(50)});
  fixture.SendAll(3);
  fixture.outcomes.Await(1);
  fixture.stream.reset();
  EXPECT_EQ(fixture.outcomes.DifferenceOf(0), "");
  for (const uint64_t id : {1, 2}) {
    EXPECT_EQ(fixture.outcomes.Of(id).status().code(), absl::StatusCode::kDeadlineExceeded);
  }
  release.Notify();
}

TEST(ExpandStreamEndTest, ClosingEndsASendThatWaits) {
  absl::Notification release;
  StreamFixture fixture(
      [&](FakeStream&) {
        release.WaitForNotification();
        return grpc::Status::OK;
      },
      {}, {.max_queued = 1});
  // A server that reads nothing takes some 64 KiB.
  const std::vector<int32_t> lengths(65'536, 1);
  absl::Notification sent_one;
  absl::Status status;
  std::thread sender([&] {
    for (uint64_t id = 0; status.ok(); ++id) {
      Request request = StreamedRequest(id);
      request.extend_seq_lens = lengths;
      request.seq_lens = lengths;
      status = fixture.stream->Send(request, fixture.outcomes.For(id));
      if (id == 0) sent_one.Notify();
    }
  });
  sent_one.WaitForNotification();
  EXPECT_EQ(fixture.stream->Close(absl::Now()).code(), absl::StatusCode::kDeadlineExceeded);
  sender.join();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_EQ(fixture.outcomes.Of(0).status().code(), absl::StatusCode::kDeadlineExceeded);
  release.Notify();
}

}  // namespace
}  // namespace nsa::metadata::client
