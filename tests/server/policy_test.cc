#include "server/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"

namespace nsa::metadata::server {
namespace {

Policy Of(const std::string& rules) { return *Policy::Parse(absl::StrCat("{\"rules\": [", rules, "]}")); }

TEST(PolicyTest, WithoutARuleNobodyMayCallAnything) {
  for (const char* json : {"{}", R"({"rules": []})"}) {
    EXPECT_FALSE(Policy::Parse(json)->Allows("Expand", {"a"})) << json;
  }
}

TEST(PolicyTest, ARuleAllowsEachOfItsCallersEachOfItsMethods) {
  const Policy policy = Of(R"({"methods": ["Expand", "GetServerInfo"], "callers": ["a", "b"]},
                              {"methods": ["*"], "callers": ["c"]})");
  EXPECT_TRUE(policy.Allows("Expand", {"a"}));
  EXPECT_TRUE(policy.Allows("GetServerInfo", {"b"}));
  EXPECT_FALSE(policy.Allows("ExpandStream", {"a"}));
  EXPECT_TRUE(policy.Allows("ExpandStream", {"c"}));
  EXPECT_FALSE(policy.Allows("Expand", {"d"}));
  EXPECT_TRUE(policy.Allows("Expand", {"d", "b"})) << "one of its names";
}

TEST(PolicyTest, AStarAtAnEndStandsForAnyText) {
  const auto allows = [](const char* pattern, std::string_view name) {
    return Of(absl::StrCat(R"({"methods": ["*"], "callers": [")", pattern, "\"]}")).Allows("Expand", {name});
  };
  EXPECT_TRUE(allows("spiffe://x/ns/a/*", "spiffe://x/ns/a/sa/b"));
  EXPECT_FALSE(allows("spiffe://x/ns/a/*", "spiffe://x/ns/ab"));
  EXPECT_TRUE(allows("*.a.test", "engine.a.test"));
  EXPECT_FALSE(allows("*.a.test", "a.test"));
  EXPECT_FALSE(allows("*.a.test", "engine.a.test.evil"));
  EXPECT_TRUE(allows("*", "anyone"));
  EXPECT_FALSE(allows("a", "ab"));
  EXPECT_FALSE(allows("a", "A")) << "case counts";
}

TEST(PolicyTest, ACallerWithoutANameMayCallNothing) {
  EXPECT_FALSE(Of(R"({"methods": ["*"], "callers": ["*"]})").Allows("Expand", {}));
}

TEST(PolicyTest, SaysWhatIsWrong) {
  const auto wrong = [](const std::string& rule) {
    return std::string(Policy::Parse(absl::StrCat("{\"rules\": [", rule, "]}")).status().message());
  };
  EXPECT_EQ(wrong(R"({"methods": ["Expand"]})"), "rules[0].callers is empty");
  EXPECT_EQ(wrong(R"({"methods": ["*"], "callers": ["a"]}, {"callers": ["a"]})"), "rules[1].methods is empty");
  EXPECT_EQ(wrong(R"({"methods": ["Check"], "callers": ["a"]})"), "rules[0].methods: there is no \"Check\"");
  for (const char* name : {"", "**", "a*b", "*a*"}) {
    EXPECT_EQ(wrong(absl::StrCat(R"({"methods": ["*"], "callers": [")", name, "\"]}")),
              absl::StrCat("rules[0].callers: \"", name, "\" has to be a name, with one * at an end at most"));
  }
  EXPECT_THAT(wrong(R"({"method": ["*"]})"), ::testing::HasSubstr("method"));
}

}  // namespace
}  // namespace nsa::metadata::server
