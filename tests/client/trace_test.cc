#include "client/trace.h"

#include <gtest/gtest.h>

#include <sstream>

namespace nsa::metadata::client {
namespace {

absl::StatusOr<std::vector<Invocation>> Parse(const std::string& lines) {
  std::istringstream in("TIMESTAMP,ContextTokens,GeneratedTokens\n" + lines);
  return ParseTrace(in, "trace.csv");
}

std::string ErrorOf(const std::string& lines) { return std::string(Parse(lines).status().message()); }

TEST(TraceTest, ReadsTimesAndTokens) {
  const auto trace = Parse(
      "2023-11-16 18:15:46.6805900,374,44\n"
      "2023-11-16 18:15:50.9951690,396,109\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->size(), 2u);
  EXPECT_EQ((*trace)[0].context_tokens, 374);
  EXPECT_EQ((*trace)[0].generated_tokens, 44);
  EXPECT_EQ((*trace)[1].context_tokens, 396);
  EXPECT_EQ((*trace)[1].arrival - (*trace)[0].arrival, absl::Nanoseconds(4'314'579'000));
}

TEST(TraceTest, ToleratesCarriageReturnsEmptyLinesAndAMissingLastNewline) {
  std::istringstream in(
      "TIMESTAMP,ContextTokens,GeneratedTokens\r\n2023-11-16 18:15:46,1,2\r\n\r\n2023-11-16 18:15:47,3,4");
  const auto trace = ParseTrace(in, "trace.csv");
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->size(), 2u);
  EXPECT_EQ((*trace)[1].generated_tokens, 4);
}

TEST(TraceTest, OrdersByArrivalAndKeepsTheOrderOfEqualTimes) {
  const auto trace = Parse(
      "2023-11-16 18:15:47,1,1\n"
      "2023-11-16 18:15:46,2,1\n"
      "2023-11-16 18:15:47,3,1\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ((*trace)[0].context_tokens, 2);
  EXPECT_EQ((*trace)[1].context_tokens, 1);
  EXPECT_EQ((*trace)[2].context_tokens, 3);
}

TEST(TraceTest, ErrorsNameFileLineAndValue) {
  EXPECT_EQ(ErrorOf("2023-11-16 18:15:46,1,1\nyesterday,1,1\n"),
            "trace.csv:3: TIMESTAMP is \"yesterday\", want a time as \"2023-11-16 18:15:46.6805900\"");
  EXPECT_EQ(ErrorOf("infinite-future,1,1\n"),
            "trace.csv:2: TIMESTAMP is \"infinite-future\", want a time as \"2023-11-16 18:15:46.6805900\"");
  EXPECT_EQ(ErrorOf("10000-01-01 00:00:00,1,1\n"),
            "trace.csv:2: TIMESTAMP is \"10000-01-01 00:00:00\", want a time as \"2023-11-16 18:15:46.6805900\"");
  EXPECT_EQ(ErrorOf("2023-11-16 18:15:46,12x,1\n"),
            "trace.csv:2: ContextTokens is \"12x\", want a whole number from 0 to 2147483647");
  EXPECT_EQ(ErrorOf("2023-11-16 18:15:46,12,-1\n"),
            "trace.csv:2: GeneratedTokens is \"-1\", want a whole number from 0 to 2147483647");
  EXPECT_EQ(ErrorOf("2023-11-16 18:15:46,12\n"),
            "trace.csv:2: \"2023-11-16 18:15:46,12\" has 2 columns, want 3: TIMESTAMP,ContextTokens,GeneratedTokens");
  EXPECT_EQ(ErrorOf("2023-11-16 18:15:46,2147483647,1\n"),
            "trace.csv:2: ContextTokens and GeneratedTokens, 2147483647 and 1, have a sum over 2147483647");
  EXPECT_EQ(ErrorOf(""), "trace.csv: holds no invocation");
}

TEST(TraceTest, RefusesAFileWithoutItsHeader) {
  for (const std::string text : {"", "2023-11-16 18:15:46,1,1\n"}) {
    std::istringstream in(text);
    const auto trace = ParseTrace(in, "trace.csv");
    EXPECT_EQ(trace.status().code(), absl::StatusCode::kInvalidArgument) << "for the text \"" << text << "\"";
  }
}

TEST(TraceTest, SaysWhichFileCannotBeRead) {
  const auto trace = ReadTrace("/nowhere/trace.csv");
  EXPECT_EQ(trace.status(), absl::NotFoundError("/nowhere/trace.csv: No such file or directory"));
}

}  // namespace
}  // namespace nsa::metadata::client
