// How an ExpandStream ends: closed, early, or at a fault.
#include <gmock/gmock.h>
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

// Tried again at once, for tests.
ClientOptions Hasty(int max_attempts) {
  return {.retry = {.max_attempts = max_attempts,
                    .initial_backoff = absl::Milliseconds(1),
                    .max_backoff = absl::Milliseconds(2)}};
}

grpc::Status Draining(int64_t retry_after_seconds = 0) {
  return Refusal(grpc::StatusCode::UNAVAILABLE, "DRAINING", "", 0, 0, retry_after_seconds);
}

TEST(ExpandStreamEndTest, WhatACallLeftUnansweredIsSentAgainInOrderOverTheNextOne) {
  std::atomic<int> calls = 0;
  std::vector<uint64_t> again;
  StreamFixture fixture(
      [&](FakeStream& stream) {
        if (++calls == 1) {
          WriteTo(stream, ChunksOf(ReadAndExpand(stream), 0));
          // One of its chunks has come: it begins anew.
          stream.Write(ChunksOf(ReadAndExpand(stream), 1)[0]);
          ReadFrom(stream);
          return Draining();
        }
        v1::ExpandStreamRequest message;
        while (stream.Read(&message)) {
          again.push_back(message.expand().request_id());
          WriteTo(stream, ChunksOf(ReferenceOf(message.expand()), 2));
        }
        return grpc::Status::OK;
      },
      Hasty(2));
  fixture.SendAll(4);
  fixture.outcomes.Await(4);
  EXPECT_EQ(fixture.Send(4), absl::OkStatus()) << "the stream goes on";
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  for (uint64_t id = 0; id < 5; ++id) EXPECT_EQ(fixture.outcomes.DifferenceOf(id), "");
  EXPECT_THAT(again, ::testing::ElementsAre(1, 2, 3, 4));
}

TEST(ExpandStreamEndTest, AnItemIsSentNoMoreOftenThanMaxAttempts) {
  StreamFixture fixture(
      [](FakeStream& stream) {
        ReadFrom(stream);
        return Draining();
      },
      Hasty(3));
  fixture.SendAll(1);
  fixture.outcomes.Await(1);
  const absl::Status status = fixture.outcomes.Of(0).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
  const auto violation = ViolationOf(status);
  ASSERT_TRUE(violation.has_value()) << status;
  EXPECT_EQ(violation->reason, v1::REFUSAL_REASON_DRAINING);
  EXPECT_EQ(fixture.stream->Close(), status);
  EXPECT_EQ(fixture.server.streams(), 3);
}

TEST(ExpandStreamEndTest, WhatEndsOtherwiseThanUnavailableIsNotSentAgain) {
  std::atomic<int> calls = 0;
  StreamFixture fixture(
      [&](FakeStream& stream) {
        const v1::ExpandResponse answer = ReadAndExpand(stream);
        if (++calls == 1) return grpc::Status(grpc::StatusCode::PERMISSION_DENIED, "not you");
        WriteTo(stream, ChunksOf(answer, 0));
        ReadToTheEnd(stream);
        return grpc::Status::OK;
      },
      Hasty(4));
  EXPECT_EQ(fixture.Send(0), absl::OkStatus());
  fixture.outcomes.Await(1);
  EXPECT_EQ(fixture.outcomes.Of(0).status(), absl::PermissionDeniedError("not you"));
  EXPECT_EQ(fixture.Send(1), absl::OkStatus()) << "another item has a call of its own";
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  EXPECT_EQ(fixture.outcomes.DifferenceOf(1), "");
}

TEST(ExpandStreamEndTest, AnItemSentAgainHasWhatIsLeftOfItsTimeout) {
  std::atomic<int> calls = 0;
  v1::ExpandStreamRequest again;
  StreamFixture fixture(
      [&](FakeStream& stream) {
        v1::ExpandStreamRequest message = ReadFrom(stream);
        if (++calls == 1) return Draining();
        again = message;
        WriteTo(stream, ChunksOf(ReferenceOf(message.expand()), 0));
        return grpc::Status::OK;
      },
      Hasty(2));
  EXPECT_EQ(fixture.stream->Send(StreamedRequest(0), fixture.outcomes.For(0), absl::Seconds(20)), absl::OkStatus());
  fixture.outcomes.Await(1);
  EXPECT_EQ(fixture.outcomes.DifferenceOf(0), "");
  EXPECT_LT(again.timeout().seconds(), 20) << "some milliseconds less, at least";
  EXPECT_GT(again.timeout().seconds(), 0);
}

TEST(ExpandStreamEndTest, AnItemThatWasCancelledIsNotSentAgain) {
  StreamFixture fixture(
      [](FakeStream& stream) {
        ReadFrom(stream);
        EXPECT_TRUE(ReadFrom(stream).has_cancel_request_id());
        return Draining();
      },
      Hasty(4));
  EXPECT_EQ(fixture.Send(0), absl::OkStatus());
  fixture.stream->Cancel(0);
  fixture.outcomes.Await(1);
  EXPECT_EQ(fixture.outcomes.Of(0).status().code(), absl::StatusCode::kCancelled);
  EXPECT_EQ(fixture.server.streams(), 1);
}

TEST(ExpandStreamEndTest, AnItemWhoseTimeoutIsShorterThanTheWaitIsNotSentAgain) {
  StreamFixture fixture(
      [](FakeStream& stream) {
        ReadFrom(stream);
        return Draining(/*retry_after_seconds=*/3600);
      },
      Hasty(4));
  EXPECT_EQ(fixture.Send(0), absl::OkStatus());
  fixture.outcomes.Await(1);
  EXPECT_EQ(fixture.outcomes.Of(0).status().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(fixture.server.streams(), 1);
}

TEST(ExpandStreamEndTest, ClosingEndsItWhileItWaitsToSendAgain) {
  absl::Notification was_read;
  StreamFixture fixture(
      [&](FakeStream& stream) {
        ReadFrom(stream);
        was_read.Notify();
        return Draining(/*retry_after_seconds=*/3600);
      },
      Hasty(4));
  EXPECT_EQ(fixture.stream->Send(StreamedRequest(0), fixture.outcomes.For(0), absl::InfiniteDuration()),
            absl::OkStatus());
  was_read.WaitForNotification();
  EXPECT_EQ(fixture.stream->Close(absl::Now() + absl::Milliseconds(200)).code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(fixture.outcomes.Of(0).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(fixture.server.streams(), 1) << "the server's hint goes before the backoff";
}

TEST(ExpandStreamEndTest, AServerThatIsNotThereIsUnavailableWithoutAViolation) {
  std::string target;
  {
    const FakeServer gone;
    target = gone.target();
  }
  const auto stream = *(*Client::Connect(target, {.retry = {.max_attempts = 1}}))->OpenStream();
  Outcomes outcomes;
  EXPECT_EQ(stream->Send(StreamedRequest(1), outcomes.For(1)), absl::OkStatus());
  outcomes.Await(1);
  const absl::Status status = outcomes.Of(1).status();
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
  EXPECT_EQ(fixture.stream->Send(StreamedRequest(0), fixture.outcomes.For(0), absl::Seconds(20)), absl::OkStatus());
  fixture.outcomes.Await(1);
  for (const uint64_t id : {1, 2}) EXPECT_EQ(fixture.Send(id), absl::OkStatus());
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
