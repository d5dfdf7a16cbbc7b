#include "client/stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <thread>
#include <vector>

#include "absl/synchronization/notification.h"
#include "client/status.h"
#include "tests/client/stream_fixture.h"

namespace nsa::metadata::client {
namespace {

TEST(ExpandStreamTest, AnswersWhatUnaryCallsDo) {
  StreamFixture fixture(nullptr);
  fixture.SendAll(100);
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  for (uint64_t id = 0; id < 100; ++id) EXPECT_EQ(fixture.outcomes.DifferenceOf(id), "");
  EXPECT_EQ(fixture.server.streams(), 1);
  EXPECT_EQ(fixture.server.calls(), 0);
}

TEST(ExpandStreamTest, TakesAnswersInAnyOrder) {
  StreamFixture fixture([](FakeStream& stream) {
    std::vector<v1::ExpandResponse> answers;
    while (answers.size() < 10) answers.push_back(ReadAndExpand(stream));
    for (auto answer = answers.rbegin(); answer != answers.rend(); ++answer) WriteTo(stream, ChunksOf(*answer, 0));
    return grpc::Status::OK;
  });
  fixture.SendAll(10);
  fixture.outcomes.Await(10);
  for (uint64_t id = 0; id < 10; ++id) EXPECT_EQ(fixture.outcomes.DifferenceOf(id), "");
}

TEST(ExpandStreamTest, PutsChunksTogetherWithOthersBetween) {
  StreamFixture fixture([](FakeStream& stream) {
    const auto first = ChunksOf(ReadAndExpand(stream), 1);
    const auto second = ChunksOf(ReadAndExpand(stream), 2);
    const auto third = ChunksOf(ReadAndExpand(stream), 0);
    for (size_t i = 0; i < first.size(); ++i) {
      stream.Write(first[i]);
      if (i < second.size()) stream.Write(second[i]);
      if (i == 1) WriteTo(stream, third);
    }
    return grpc::Status::OK;
  });
  fixture.SendAll(3);
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  for (uint64_t id = 0; id < 3; ++id) EXPECT_EQ(fixture.outcomes.DifferenceOf(id), "");
}

TEST(ExpandStreamTest, ARefusalIsThatItemsAlone) {
  StreamFixture fixture([](FakeStream& stream) {
    const v1::ExpandResponse first = ReadAndExpand(stream);
    v1::ExpandStreamResponse refusal = StreamedRefusal(
        ReadFrom(stream).expand().request_id(), grpc::StatusCode::INVALID_ARGUMENT, v1::REFUSAL_REASON_NEGATIVE_LENGTH);
    refusal.mutable_refusal()->set_message("no");
    refusal.mutable_refusal()->set_field("seq_lens[1]");
    refusal.mutable_refusal()->set_value(-4);
    stream.Write(refusal);
    WriteTo(stream, ChunksOf(first, 0));
    return grpc::Status::OK;
  });
  fixture.SendAll(2);
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  EXPECT_EQ(fixture.outcomes.DifferenceOf(0), "");
  const absl::Status refused = fixture.outcomes.Of(1).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(refused.message(), "no");
  const auto violation = ViolationOf(refused);
  ASSERT_TRUE(violation.has_value());
  EXPECT_EQ(violation->reason, v1::REFUSAL_REASON_NEGATIVE_LENGTH);
  EXPECT_EQ(violation->field, "seq_lens[1]");
  EXPECT_EQ(violation->value, -4);
}

TEST(ExpandStreamTest, AnItemMayBeRefusedAmidItsChunks) {
  StreamFixture fixture([](FakeStream& stream) {
    stream.Write(ChunksOf(ReadAndExpand(stream), 1)[0]);
    stream.Write(StreamedRefusal(0, grpc::StatusCode::INTERNAL, v1::REFUSAL_REASON_INTERNAL));
    WriteTo(stream, ChunksOf(ReadAndExpand(stream), 1));
    return grpc::Status::OK;
  });
  fixture.SendAll(1);
  fixture.outcomes.Await(1);
  EXPECT_EQ(fixture.outcomes.Of(0).status().code(), absl::StatusCode::kInternal);
  Outcomes again;
  EXPECT_EQ(fixture.stream->Send(StreamedRequest(0), again.For(0)), absl::OkStatus()) << "the id is free";
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  EXPECT_EQ(again.DifferenceOf(0), "");
}

TEST(ExpandStreamTest, ACancelIsSentOnceForAnItemInFlight) {
  std::vector<uint64_t> cancels;
  StreamFixture fixture([&](FakeStream& stream) {
    const uint64_t id = ReadFrom(stream).expand().request_id();
    v1::ExpandStreamRequest message;
    while (stream.Read(&message)) cancels.push_back(message.cancel_request_id());
    stream.Write(StreamedRefusal(id, grpc::StatusCode::CANCELLED, v1::REFUSAL_REASON_CANCELLED));
    return grpc::Status::OK;
  });
  EXPECT_EQ(fixture.Send(7), absl::OkStatus());
  for (const uint64_t id : {8, 7, 7}) fixture.stream->Cancel(id);
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  EXPECT_EQ(fixture.outcomes.Of(7).status().code(), absl::StatusCode::kCancelled);
  EXPECT_THAT(cancels, ::testing::ElementsAre(7));
}

TEST(ExpandStreamTest, TellsTheServerHowLongAnItemMayTake) {
  std::map<uint64_t, v1::ExpandStreamRequest> read;
  StreamFixture fixture(
      [&](FakeStream& stream) {
        v1::ExpandStreamRequest message;
        while (stream.Read(&message)) {
          read[message.expand().request_id()] = message;
          WriteTo(stream, ChunksOf(ReferenceOf(message.expand()), 0));
        }
        return grpc::Status::OK;
      },
      {.timeout = absl::Seconds(20)});
  EXPECT_EQ(fixture.Send(0), absl::OkStatus());
  const auto send = [&](uint64_t id, absl::Duration timeout) {
    return fixture.stream->Send(StreamedRequest(id), fixture.outcomes.For(id), timeout);
  };
  EXPECT_EQ(send(1, absl::Milliseconds(15'500)), absl::OkStatus());
  EXPECT_EQ(send(2, absl::InfiniteDuration()), absl::OkStatus());
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  EXPECT_EQ(read[0].timeout().seconds(), 20) << "ClientOptions.timeout";
  EXPECT_EQ(read[1].timeout().seconds(), 15);
  EXPECT_EQ(read[1].timeout().nanos(), 500'000'000);
  EXPECT_FALSE(read[2].has_timeout());
}

TEST(ExpandStreamTest, AnItemEndsAtItsTimeoutThoughTheServerSaysNothing) {
  absl::Notification release;
  std::vector<uint64_t> cancels;
  StreamFixture fixture([&](FakeStream& stream) {
    const v1::ExpandResponse late = ReadAndExpand(stream);
    const v1::ExpandResponse patient = ReadAndExpand(stream);
    cancels.push_back(ReadFrom(stream).cancel_request_id());
    release.WaitForNotification();
    WriteTo(stream, ChunksOf(late, 0));
    WriteTo(stream, ChunksOf(patient, 0));
    WriteTo(stream, ChunksOf(ReadAndExpand(stream), 0));
    return grpc::Status::OK;
  });
  const auto send = [&](uint64_t id, Outcomes& outcomes, absl::Duration timeout) {
    return fixture.stream->Send(StreamedRequest(id), outcomes.For(id), timeout);
  };
  EXPECT_EQ(send(1, fixture.outcomes, absl::Milliseconds(100)), absl::OkStatus());
  EXPECT_EQ(send(2, fixture.outcomes, absl::Seconds(20)), absl::OkStatus());
  fixture.outcomes.Await(1);
  EXPECT_EQ(fixture.outcomes.Of(1).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(fixture.Send(1).code(), absl::StatusCode::kAlreadyExists) << "its answer may still come";
  release.Notify();
  fixture.outcomes.Await(2);
  EXPECT_EQ(fixture.outcomes.DifferenceOf(2), "") << "another item's answer, after one for nobody";
  Outcomes again;
  EXPECT_EQ(send(1, again, absl::Seconds(20)), absl::OkStatus());
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  EXPECT_EQ(again.DifferenceOf(1), "");
  EXPECT_THAT(cancels, ::testing::ElementsAre(1));
}

TEST(ExpandStreamTest, ClosingDoesNotWaitForAnswersToItemsWhoseTimeHasPassed) {
  absl::Notification release;
  StreamFixture fixture([&](FakeStream&) {
    release.WaitForNotification();
    return grpc::Status::OK;
  });
  for (uint64_t id = 0; id < 2; ++id) {
    EXPECT_EQ(fixture.stream->Send(StreamedRequest(id), fixture.outcomes.For(id), absl::Milliseconds(100 * (id + 1))),
              absl::OkStatus());
  }
  fixture.outcomes.Await(1);
  const absl::Time begin = absl::Now();
  // The deadline of a call is 30 s.
  EXPECT_EQ(fixture.stream->Close().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_LT(absl::Now() - begin, absl::Seconds(10));
  EXPECT_EQ(fixture.outcomes.Of(1).status().code(), absl::StatusCode::kDeadlineExceeded);
  release.Notify();
}

TEST(ExpandStreamTest, ASendWaitsForRoomNoLongerThanItsTimeout) {
  absl::Notification release;
  StreamFixture fixture(
      [&](FakeStream&) {
        release.WaitForNotification();
        return grpc::Status::OK;
      },
      {}, {.max_queued = 1});
  // A server that reads nothing takes some 64 KiB.
  const std::vector<int32_t> lengths(65'536, 1);
  absl::Status status;
  for (uint64_t id = 0; status.ok() && id < 100; ++id) {
    Request request = StreamedRequest(id);
    request.extend_seq_lens = lengths;
    request.seq_lens = lengths;
    status = fixture.stream->Send(request, fixture.outcomes.For(id), absl::Milliseconds(200));
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kDeadlineExceeded) << status;
  fixture.outcomes.Await(1);
  EXPECT_EQ(fixture.outcomes.Of(0).status().code(), absl::StatusCode::kDeadlineExceeded);
  release.Notify();
}

TEST(ExpandStreamTest, AnIdInFlightIsRefusedAndFreeOnceAnswered) {
  absl::Notification release;
  StreamFixture fixture([&](FakeStream& stream) {
    const v1::ExpandResponse first = ReadAndExpand(stream);
    release.WaitForNotification();
    WriteTo(stream, ChunksOf(first, 0));
    WriteTo(stream, ChunksOf(ReadAndExpand(stream), 0));
    return grpc::Status::OK;
  });
  EXPECT_EQ(fixture.Send(5), absl::OkStatus());
  EXPECT_EQ(fixture.Send(5).code(), absl::StatusCode::kAlreadyExists);
  release.Notify();
  fixture.outcomes.Await(1);
  Outcomes again;
  EXPECT_EQ(fixture.stream->Send(StreamedRequest(5), again.For(5)), absl::OkStatus());
  again.Await(1);
  EXPECT_EQ(again.DifferenceOf(5), "");
}

TEST(ExpandStreamTest, ManyThreadsMaySendOverIt) {
  constexpr uint64_t kThreads = 4;
  constexpr uint64_t kItems = 200;
  StreamFixture fixture(nullptr, {}, {.max_queued = 2});
  std::vector<std::thread> threads;
  for (uint64_t thread = 0; thread < kThreads; ++thread) {
    threads.emplace_back([&fixture, thread] {
      for (uint64_t i = 0; i < kItems; ++i) EXPECT_EQ(fixture.Send(thread * kItems + i), absl::OkStatus());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(fixture.stream->Close(), absl::OkStatus());
  for (uint64_t id = 0; id < kThreads * kItems; ++id) ASSERT_EQ(fixture.outcomes.DifferenceOf(id), "");
}

TEST(ExpandStreamTest, StreamsTakeTheConnectionsInTurn) {
  FakeServer server;
  const auto client = *Client::Connect(server.target(), {.channels = 2});
  Outcomes outcomes;
  for (uint64_t id = 0; id < 4; ++id) {
    const auto stream = *client->OpenStream();
    EXPECT_EQ(stream->Send(StreamedRequest(id), outcomes.For(id)), absl::OkStatus());
  }
  EXPECT_EQ(server.connections(), 2u);
}

TEST(ExpandStreamTest, RefusesOptionsThatAreOutOfRange) {
  FakeServer server;
  const auto client = *Client::Connect(server.target());
  EXPECT_EQ(client->OpenStream({.max_queued = 0}).status(),
            absl::InvalidArgumentError("StreamOptions.max_queued is 0, want 1 or more"));
}

}  // namespace
}  // namespace nsa::metadata::client
