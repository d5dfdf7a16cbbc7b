#include "client/replay_steps.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace nsa::metadata::client {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::Ge;
using ::testing::Le;

Invocation At(absl::Duration arrival, int32_t context_tokens, int32_t generated_tokens) {
  return {absl::FromUnixSeconds(1'700'000'000) + arrival, context_tokens, generated_tokens};
}

std::vector<Step> StepsOf(const std::vector<Invocation>& trace, ReplaySteps::Options options = {}) {
  ReplaySteps steps(trace, options);
  std::vector<Step> all;
  while (std::optional<Step> step = steps.Next()) all.push_back(*std::move(step));
  return all;
}

// "decode 20 ms [100]": kind, trace time, seq_lens.
std::string Describe(const Step& step) {
  return absl::StrCat(step.kind == Step::Kind::kDecode ? "decode " : "prefill ",
                      absl::ToInt64Milliseconds(step.trace_time), " ms ", absl::StrJoin(step.seq_lens, " "),
                      step.continues ? " continued" : "");
}

std::vector<std::string> Describe(const std::vector<Step>& steps) {
  std::vector<std::string> texts;
  for (const Step& step : steps) texts.push_back(Describe(step));
  return texts;
}

TEST(ReplayStepsTest, AnInvocationIsPrefilledWhereItArrivesAndDecodedWhileItRuns) {
  // The first runs until 60 ms (2 tokens), the second from 25 ms until 55 ms.
  EXPECT_THAT(Describe(StepsOf({At(absl::ZeroDuration(), 100, 2), At(absl::Milliseconds(25), 50, 1)})),
              ElementsAre("prefill 0 ms 100", "decode 20 ms 100", "prefill 20 ms 50", "decode 40 ms 101 50"));
}

TEST(ReplayStepsTest, APrefillExtendsByTheWholeContext) {
  const std::vector<Step> steps = StepsOf({At(absl::ZeroDuration(), 100, 0), At(absl::Milliseconds(19), 7, 0)});
  ASSERT_EQ(steps.size(), 1u) << "got " << ::testing::PrintToString(Describe(steps));
  EXPECT_THAT(steps[0].extend_seq_lens, ElementsAre(100, 7));
  EXPECT_THAT(steps[0].seq_lens, ElementsAre(100, 7));
  EXPECT_EQ(steps[0].total_tokens, 107);
}

TEST(ReplayStepsTest, StepsWithoutASequenceAreLeftOut) {
  EXPECT_THAT(Describe(StepsOf({At(absl::ZeroDuration(), 1, 0), At(absl::Hours(24 * 365), 2, 0)})),
              ElementsAre("prefill 0 ms 1", "prefill 31536000000 ms 2"));
}

TEST(ReplayStepsTest, ADecodeExtendsByOneToEightTokensAndTakesEachOfThem) {
  std::vector<int32_t> drawn;
  for (const Step& step : StepsOf({At(absl::ZeroDuration(), 100, 1000)})) {
    if (step.kind != Step::Kind::kDecode) continue;
    drawn.insert(drawn.end(), step.extend_seq_lens.begin(), step.extend_seq_lens.end());
  }
  EXPECT_EQ(drawn.size(), 1499u) << "1000 tokens of 30 ms in steps of 20 ms, the first one the prefill's";
  EXPECT_THAT(drawn, Each(AllOf(Ge(1), Le(8))));
  for (int32_t length = 1; length <= 8; ++length) EXPECT_THAT(drawn, ::testing::Contains(length));
}

TEST(ReplayStepsTest, TheSameSeedGivesTheSameLengthsOnEveryMachine) {
  const auto lengths = [](uint64_t seed) {
    std::vector<int32_t> drawn;
    for (const Step& step : StepsOf({At(absl::ZeroDuration(), 100, 6)}, {.seed = seed})) {
      if (step.kind == Step::Kind::kDecode) drawn.push_back(step.extend_seq_lens.at(0));
    }
    return drawn;
  };
  // From the definition of mt19937_64, computed apart from this code.
  EXPECT_THAT(lengths(1), ElementsAre(2, 2, 4, 1, 3, 8, 4, 1));
  EXPECT_THAT(lengths(2), ElementsAre(8, 7, 7, 8, 3, 2, 2, 1));
}

TEST(ReplayStepsTest, AStepOverTheTokenLimitGoesIntoSeveralAndALargeInvocationStaysWhole) {
  const std::vector<Invocation> trace = {At(absl::ZeroDuration(), 6, 0), At(absl::Milliseconds(1), 4, 0),
                                         At(absl::Milliseconds(2), 11, 0), At(absl::Milliseconds(3), 1, 0)};
  EXPECT_THAT(Describe(StepsOf(trace, {.max_tokens = 10})),
              ElementsAre("prefill 0 ms 6 4", "prefill 0 ms 11 continued", "prefill 0 ms 1 continued"));
}

TEST(ReplayStepsTest, ARequestHasTheStepsLengthsAndTheModeAsked) {
  const std::vector<Step> steps = StepsOf({At(absl::ZeroDuration(), 3, 0)});
  ASSERT_EQ(steps.size(), 1u);
  const Request request = steps[0].ToRequest(v1::SEQUENCE_MODE_REPEAT);
  EXPECT_EQ(request.mode, v1::SEQUENCE_MODE_REPEAT);
  EXPECT_EQ(request.nsa_index_topk, 2048);
  EXPECT_THAT(request.extend_seq_lens, ElementsAre(3));
}

TEST(ReplayStepsTest, TheLargestStepFitsAUnaryReply) {
  const int64_t unary_limit = (4 << 20) - (64 << 10);
  for (const int64_t outputs : {1, 2, 9}) {
    EXPECT_LT(MaxReplyTokens(outputs) * outputs * 4, unary_limit) << "with " << outputs << " outputs";
  }
}

TEST(ReplayStepsTest, TheLargestStreamedStepIsWithinTheServersLimits) {
  EXPECT_EQ(MaxStreamedTokens(1), 4'194'304);
  EXPECT_EQ(MaxStreamedTokens(2), 4'194'304);
  EXPECT_LT(MaxStreamedTokens(9) * 9 * 4, 64 << 20);
}

}  // namespace
}  // namespace nsa::metadata::client
