// Arrays that an engine wrote to a file.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace nsa::metadata::client {

// Name to values, of one dimension or flattened.
using Dump = std::map<std::string, std::vector<int32_t>>;

enum class DumpFormat : uint8_t { kJson, kNpz };

// What ReadDump does with a file's bytes.
absl::StatusOr<Dump> ParseDump(std::string_view bytes, DumpFormat format);

// Reads a .json file, an object with numbers and arrays of numbers, or a .npz file as numpy.savez and savez_compressed
// write it; what holds no integers is left out. NOT_FOUND, INVALID_ARGUMENT naming the file, the array and what is
// wrong with it: no integer, a value that passes int32, more than 1 GiB.
absl::StatusOr<Dump> ReadDump(const std::string& path);

}  // namespace nsa::metadata::client
