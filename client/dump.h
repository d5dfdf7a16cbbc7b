// Arrays that an engine wrote to a file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nsa::metadata::client {

struct Dump {
  // Name to values, of one dimension or flattened.
  std::map<std::string, std::vector<int32_t>> arrays;
  // Name to what is there in place of integers that can be read, as "no integers: <f8".
  std::map<std::string, std::string> skipped;
};

enum class DumpFormat : uint8_t { kJson, kNpz };

// What ReadDump does with a file's bytes.
absl::StatusOr<Dump> ParseDump(std::string_view bytes, DumpFormat format);

// Reads a .json file, an object with numbers and arrays of numbers, or a .npz file as numpy.savez and savez_compressed
// write it; what holds no little-endian integers is skipped. NOT_FOUND, INVALID_ARGUMENT naming the file, the array and
// what is wrong with it: a value that is no integer or passes int32, more than 1 GiB.
absl::StatusOr<Dump> ReadDump(const std::string& path);

}  // namespace nsa::metadata::client
