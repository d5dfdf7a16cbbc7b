#include "client/replay_report.h"

#include "absl/strings/str_cat.h"
#include "client/json.h"

namespace nsa::metadata::client {

std::string ReplayText(const ReplayTally& tally, bool verified) {
  std::string text;
  for (const std::string& difference : tally.differences) absl::StrAppend(&text, "wrong: ", difference, "\n");
  return absl::StrCat(text, "steps     ", tally.steps, "\n", TallyText(tally, verified));
}

std::string ReplayJson(const ReplayTally& tally, bool verified) {
  JsonObject json;
  json.Add("steps", tally.steps);
  AddTally(tally, verified, json);
  return json.str() + "\n";
}

}  // namespace nsa::metadata::client
