#include "client/dump.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>
#include <zip.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <memory>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace nsa::metadata::client {
namespace {

constexpr uint64_t kMostBytes = uint64_t{1} << 30;

absl::Status Wrong(const std::string& what) { return absl::InvalidArgumentError(what); }

bool FitsInt32(double value) {
  return value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max();
}

absl::Status Append(const google::protobuf::Value& value, std::vector<int32_t>& values) {
  if (value.kind_case() == google::protobuf::Value::kListValue) {
    for (const google::protobuf::Value& one : value.list_value().values()) {
      if (absl::Status status = Append(one, values); !status.ok()) return status;
    }
    return absl::OkStatus();
  }
  const double number = value.number_value();
  if (value.kind_case() != google::protobuf::Value::kNumberValue || number != std::floor(number)) {
    return Wrong(absl::StrCat("value ", values.size(), " is no whole number"));
  }
  if (!FitsInt32(number)) return Wrong(absl::StrCat("value ", values.size(), " is ", number, ", which passes int32"));
  values.push_back(static_cast<int32_t>(number));
  return absl::OkStatus();
}

// What a value without numbers is.
const char* KindName(const google::protobuf::Value& value) {
  switch (value.kind_case()) {
    case google::protobuf::Value::kNullValue:
      return "null";
    case google::protobuf::Value::kBoolValue:
      return "a truth value";
    case google::protobuf::Value::kStringValue:
      return "a string";
    default:
      return "an object";
  }
}

absl::StatusOr<Dump> ParseJson(std::string_view text) {
  google::protobuf::Struct object;
  const auto parsed = google::protobuf::util::JsonStringToMessage({text.data(), text.size()}, &object);
  if (!parsed.ok()) return Wrong(absl::StrCat("is no JSON object: ", std::string(parsed.message())));
  Dump dump;
  for (const auto& [name, value] : object.fields()) {
    const auto kind = value.kind_case();
    if (kind != google::protobuf::Value::kNumberValue && kind != google::protobuf::Value::kListValue) {
      dump.skipped[name] = absl::StrCat("no integers: ", KindName(value));
      continue;
    }
    if (absl::Status status = Append(value, dump.arrays[name]); !status.ok()) {
      return Wrong(absl::StrCat("has ", name, " whose ", std::string(status.message())));
    }
  }
  return dump;
}

// The value of a key in an .npy file's header, a Python literal: up to `end`.
std::string_view ValueOf(std::string_view header, std::string_view key, char end) {
  const size_t at = header.find(key);
  if (at == std::string_view::npos) return {};
  const std::string_view rest = header.substr(at + key.size());
  return rest.substr(0, rest.find(end));
}

template <typename Number>
absl::Status Convert(std::string_view bytes, std::vector<int32_t>& values) {
  for (size_t i = 0; i < bytes.size() / sizeof(Number); ++i) {
    Number number;
    memcpy(&number, bytes.data() + i * sizeof number, sizeof number);
    if (!FitsInt32(static_cast<double>(number))) {
      return Wrong(absl::StrCat("value ", i, " is ", number, ", which passes int32"));
    }
    values.push_back(static_cast<int32_t>(number));
  }
  return absl::OkStatus();
}

// Of values of a numpy type that Convert isn't for.
absl::Status NotRead(std::string_view type) {
  constexpr size_t kMostShown = 16;
  if (type.empty()) return absl::UnimplementedError("no integers: values of several fields");
  const bool integers = type[0] == '>' && type.size() == 3 && (type[1] == 'i' || type[1] == 'u');
  return absl::UnimplementedError(absl::StrCat(integers ? "no little-endian integers: " : "no integers: ",
                                               std::string(type.substr(0, kMostShown))));
}

// An .npy file: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
// UNIMPLEMENTED says what it holds in place of integers.
absl::Status ParseNpy(std::string_view bytes, std::vector<int32_t>& values) {
  constexpr std::string_view kMagic = "\x93NUMPY";
  constexpr size_t kFixed = 10;  // magic, version, and two bytes of the header's length
  if (bytes.size() < kFixed + 2 || bytes.substr(0, kMagic.size()) != kMagic) return Wrong("is no .npy file");
  const auto byte = [&](size_t at) { return static_cast<size_t>(static_cast<uint8_t>(bytes[at])); };
  const bool is_long = byte(6) > 1;
  const size_t begin = is_long ? kFixed + 2 : kFixed;
  const size_t size = byte(8) + (byte(9) << 8) + (is_long ? (byte(10) << 16) + (byte(11) << 24) : 0);
  if (size > bytes.size() - begin) return Wrong("is no .npy file: its header is longer than it is");
  const std::string_view header = bytes.substr(begin, size);
  const std::string_view data = bytes.substr(begin + size);
  const std::string_view type = ValueOf(header, "'descr': '", '\'');
  size_t count = 1;
  const std::string_view shape = ValueOf(header, "'shape': (", ')');
  for (absl::string_view part :
       absl::StrSplit(absl::string_view(shape.data(), shape.size()), absl::ByAnyChar(", "), absl::SkipEmpty())) {
    size_t dimension = 0;
    if (!absl::SimpleAtoi(part, &dimension) || dimension > kMostBytes) return Wrong("has a shape that can't be read");
    count *= dimension;
    if (count > kMostBytes) return Wrong("has more than 1 GiB");
  }
  const bool integer = type.size() == 3 && (type[1] == 'i' || type[1] == 'u') && type[0] != '>';
  if (!integer) return NotRead(type);
  const auto width = static_cast<size_t>(type[2] - '0');
  if (width == 0 || width > 8 || data.size() / width < count) {
    return Wrong(
        absl::StrCat("has ", data.size(), " bytes for ", count, " values of type \"", std::string(type), "\""));
  }
  const std::string_view used = data.substr(0, count * width);
  if (type == "<i4") return Convert<int32_t>(used, values);
  if (type == "<i8") return Convert<int64_t>(used, values);
  if (type == "<u4") return Convert<uint32_t>(used, values);
  if (type == "<u8") return Convert<uint64_t>(used, values);
  if (type == "<i2") return Convert<int16_t>(used, values);
  if (type == "<u2") return Convert<uint16_t>(used, values);
  if (type == "|i1") return Convert<int8_t>(used, values);
  if (type == "|u1") return Convert<uint8_t>(used, values);
  return NotRead(type);
}

// Grows as it reads: a small file may say that it holds much.
absl::Status ReadAll(zip_file_t* file, uint64_t size, std::string& content) {
  constexpr size_t kStep = 1 << 20;
  while (file != nullptr && content.size() < size) {
    const size_t have = content.size();
    content.resize(have + std::min<uint64_t>(kStep, size - have));
    const int64_t got = zip_fread(file, content.data() + have, content.size() - have);
    if (got <= 0) return Wrong("can't be read");
    content.resize(have + static_cast<size_t>(got));
  }
  char more;
  // At the end it compares the checksum.
  return file == nullptr || zip_fread(file, &more, 1) != 0 ? Wrong("can't be read") : absl::OkStatus();
}

absl::StatusOr<Dump> ParseNpz(std::string_view bytes) {
  zip_error_t error;
  zip_error_init(&error);
  zip_source_t* const source = zip_source_buffer_create(bytes.data(), bytes.size(), /*freep=*/0, &error);
  const std::unique_ptr<zip_t, decltype(&zip_discard)> archive(
      source == nullptr ? nullptr : zip_open_from_source(source, ZIP_RDONLY, &error), zip_discard);
  if (archive == nullptr) {
    zip_source_free(source);
    const std::string what = absl::StrCat("is no .npz file: ", zip_error_strerror(&error));
    zip_error_fini(&error);
    return Wrong(what);
  }
  Dump dump;
  uint64_t total = 0;
  for (int64_t i = 0; i < zip_get_num_entries(archive.get(), 0); ++i) {
    const auto place = static_cast<uint64_t>(i);
    zip_stat_t entry;
    if (zip_stat_index(archive.get(), place, 0, &entry) != 0 || (entry.valid & ZIP_STAT_NAME) == 0 ||
        (entry.valid & ZIP_STAT_SIZE) == 0) {
      return Wrong("has an entry that can't be read");
    }
    std::string name = entry.name;
    if (!absl::EndsWith(name, ".npy")) {
      dump.skipped[name] = "no integers: it is no .npy file";
      continue;
    }
    name.resize(name.size() - 4);
    // What an entry says it has is allocated; all of them together no more than the bound.
    total += std::min(entry.size, kMostBytes + 1);
    if (total > kMostBytes) return Wrong("has more than 1 GiB");
    const std::unique_ptr<zip_file_t, decltype(&zip_fclose)> file(zip_fopen_index(archive.get(), place, 0), zip_fclose);
    std::string content;
    if (absl::Status status = ReadAll(file.get(), entry.size, content); !status.ok()) {
      return Wrong(absl::StrCat("has ", name, ", which ", std::string(status.message())));
    }
    std::vector<int32_t> values;
    absl::Status status = ParseNpy(content, values);
    if (absl::IsUnimplemented(status)) {  // names, weights, masks
      dump.skipped[name] = std::string(status.message());
      continue;
    }
    if (!status.ok()) return Wrong(absl::StrCat("has ", name, ", which ", std::string(status.message())));
    dump.arrays[name] = std::move(values);
  }
  return dump;
}

}  // namespace

absl::StatusOr<Dump> ParseDump(std::string_view bytes, DumpFormat format) {
  return format == DumpFormat::kJson ? ParseJson(bytes) : ParseNpz(bytes);
}

absl::StatusOr<Dump> ReadDump(const std::string& path) {
  const bool json = absl::EndsWith(path, ".json");
  if (!json && !absl::EndsWith(path, ".npz")) return Wrong(absl::StrCat(path, " is neither .json nor .npz"));
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return absl::NotFoundError(absl::StrCat(path, ": ", strerror(errno)));
  const auto size = static_cast<int64_t>(file.tellg());
  if (size < 0 || static_cast<uint64_t>(size) > kMostBytes) return Wrong(absl::StrCat(path, " has more than 1 GiB"));
  std::string bytes(static_cast<size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(bytes.data(), size)) return Wrong(absl::StrCat(path, " can't be read"));
  absl::StatusOr<Dump> dump = ParseDump(bytes, json ? DumpFormat::kJson : DumpFormat::kNpz);
  if (!dump.ok()) return Wrong(absl::StrCat(path, " ", std::string(dump.status().message())));
  return dump;
}

}  // namespace nsa::metadata::client
