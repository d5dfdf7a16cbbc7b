#include "server/log.h"

#include <google/protobuf/struct.pb.h>
#include <google/protobuf/util/json_util.h>

#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "spdlog/formatter.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace nsa::metadata::server {
namespace {

// Of the line that this thread is logging.
thread_local const LogFields* fields_of_line = nullptr;

bool log_is_json = false;

std::string Printable(std::string_view bytes) { return absl::CHexEscape({bytes.data(), bytes.size()}); }

class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& line, spdlog::memory_buf_t& out) override {
    google::protobuf::Struct object;
    auto& members = *object.mutable_fields();
    members["time"].set_string_value(
        absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::FromChrono(line.time), absl::UTCTimeZone()));
    const auto level = spdlog::level::to_string_view(line.level);
    members["level"].set_string_value(std::string(level.data(), level.size()));
    members["message"].set_string_value(Printable({line.payload.data(), line.payload.size()}));
    if (fields_of_line != nullptr) {
      for (const auto& [name, value] : *fields_of_line) {
        auto& member = members[std::string(name)];
        if (const auto* text = std::get_if<std::string>(&value)) {
          member.set_string_value(Printable(*text));
        } else if (const auto* number = std::get_if<double>(&value)) {
          member.set_number_value(*number);
        } else {
          member.set_number_value(static_cast<double>(std::get<int64_t>(value)));
        }
      }
    }
    std::string json;
    // Printable ASCII always can be.
    (void)google::protobuf::util::MessageToJsonString(object, &json);
    json += '\n';
    out.append(json.data(), json.data() + json.size());
  }
  std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<JsonFormatter>(); }
};

std::string TextOf(const LogFields::value_type::second_type& value) {
  if (const auto* text = std::get_if<std::string>(&value)) {
    // What could be taken for the next field is quoted, with its quotes escaped.
    const bool plain = !text->empty() && text->find_first_of(" =\"") == std::string::npos;
    return plain ? Printable(*text) : absl::StrCat("\"", Printable(*text), "\"");
  }
  if (const auto* number = std::get_if<double>(&value)) return absl::StrCat(*number);
  return absl::StrCat(std::get<int64_t>(value));
}

}  // namespace

void SetUpLog(const std::string& format) {
  spdlog::set_default_logger(spdlog::stderr_logger_mt("nsa-metadata-server"));
  log_is_json = format == "json";
  if (log_is_json) {
    spdlog::set_formatter(std::make_unique<JsonFormatter>());
  } else {
    spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  }
}

void Log(spdlog::level::level_enum level, std::string_view message, const LogFields& fields) {
  std::string line(message);
  if (!log_is_json) {
    for (const auto& [name, value] : fields) absl::StrAppend(&line, " ", std::string(name), "=", TextOf(value));
  }
  fields_of_line = &fields;
  spdlog::log(level, "{}", line);
  fields_of_line = nullptr;
}

bool LogLimit::Allow(int64_t* suppressed) {
  const int64_t now = absl::ToUnixSeconds(absl::Now());
  if (second_.exchange(now, std::memory_order_relaxed) != now) lines_ = 0;
  if (lines_.fetch_add(1, std::memory_order_relaxed) >= per_second_) {
    suppressed_.fetch_add(1, std::memory_order_relaxed);
    return false;
  }
  *suppressed = suppressed_.exchange(0, std::memory_order_relaxed);
  return true;
}

}  // namespace nsa::metadata::server
