#include "client/json.h"

#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace nsa::metadata::client {

std::string JsonString(absl::string_view text) {
  std::string json = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      json += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      absl::StrAppendFormat(&json, "\\u%04x", c);
    } else {
      json += c;
    }
  }
  return json + '"';
}

std::string JsonNumber(double value) { return std::isfinite(value) ? absl::StrFormat("%.9g", value) : "null"; }

std::string JsonArray(std::span<const int32_t> values) { return absl::StrCat("[", absl::StrJoin(values, ","), "]"); }

std::string JsonArray(std::span<const std::string> values) {
  const auto append = [](std::string* out, const std::string& value) { absl::StrAppend(out, JsonString(value)); };
  return absl::StrCat("[", absl::StrJoin(values, ",", append), "]");
}

JsonObject& JsonObject::Add(absl::string_view name, int64_t value) { return AddJson(name, absl::StrCat(value)); }
JsonObject& JsonObject::Add(absl::string_view name, uint64_t value) { return AddJson(name, absl::StrCat(value)); }
JsonObject& JsonObject::Add(absl::string_view name, double value) { return AddJson(name, JsonNumber(value)); }
JsonObject& JsonObject::Add(absl::string_view name, bool value) { return AddJson(name, value ? "true" : "false"); }
JsonObject& JsonObject::Add(absl::string_view name, const std::string& value) {
  return AddJson(name, JsonString(value));
}
JsonObject& JsonObject::Add(absl::string_view name, const JsonObject& value) { return AddJson(name, value.str()); }

JsonObject& JsonObject::AddJson(absl::string_view name, absl::string_view json) {
  absl::StrAppend(&members_, members_.empty() ? "" : ",", JsonString(name), ":", json);
  return *this;
}

std::string JsonObject::str() const { return absl::StrCat("{", members_, "}"); }

}  // namespace nsa::metadata::client
