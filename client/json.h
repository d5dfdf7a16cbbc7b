// Writes JSON.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "absl/strings/string_view.h"

namespace nsa::metadata::client {

// `text` as a JSON string, with its quotes.
std::string JsonString(absl::string_view text);

// A number in at most nine digits; null if it is not finite.
std::string JsonNumber(double value);

// "[1,2]".
std::string JsonArray(std::span<const int32_t> values);
std::string JsonArray(std::span<const std::string> values);

// One object, member by member in the order they are added.
class JsonObject {
 public:
  JsonObject& Add(absl::string_view name, int64_t value);
  JsonObject& Add(absl::string_view name, uint64_t value);
  JsonObject& Add(absl::string_view name, double value);
  JsonObject& Add(absl::string_view name, bool value);
  JsonObject& Add(absl::string_view name, const std::string& value);
  JsonObject& Add(absl::string_view name, const JsonObject& value);

  // `json` is a value already written, as JsonArray answers it.
  JsonObject& AddJson(absl::string_view name, absl::string_view json);

  // "{...}", on one line.
  std::string str() const;

 private:
  std::string members_;
};

}  // namespace nsa::metadata::client
