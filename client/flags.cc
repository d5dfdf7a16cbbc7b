#include "client/flags.h"

#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "client/outputs.h"

namespace nsa::metadata::client {
namespace {

absl::Duration ParseDurationFlag(const std::string& name, const std::string& text) {
  absl::Duration duration;
  if (!absl::ParseDuration(text, &duration) || duration < absl::ZeroDuration()) {
    throw CLI::ValidationError(name, absl::StrCat("\"", text, "\" is not a duration as 30s, 500ms or 0"));
  }
  return duration;
}

v1::Output ParseOutput(absl::string_view name) {
  std::vector<std::string> names;
  for (const OutputField& field : AllOutputs()) {
    names.emplace_back(field.name);
    if (names.back() == name) return field.output;
  }
  throw CLI::ValidationError("--outputs", absl::StrCat("\"", name, "\" is none of all, ", absl::StrJoin(names, ", ")));
}

int32_t ParseLength(const std::string& flag, absl::string_view text) {
  int32_t length = 0;
  if (!absl::SimpleAtoi(text, &length)) {
    throw CLI::ValidationError(flag, absl::StrCat("\"", text, "\" is not a whole number of 32 bits"));
  }
  return length;
}

}  // namespace

absl::Status SetConnection(const CommonFlags& flags, ClientOptions& options) {
  const TlsFiles& files = flags.tls_files;
  options.server_name = flags.server_name;
  if (!flags.tls && files.ca.empty() && files.certificate.empty() && files.key.empty() && flags.server_name.empty()) {
    return absl::OkStatus();
  }
  absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> credentials = TlsCredentials(files);
  if (!credentials.ok()) return credentials.status();
  options.credentials = *std::move(credentials);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Client>> Connect(const CommonFlags& flags, ClientOptions options) {
  options.timeout = flags.timeout;
  if (absl::Status status = SetConnection(flags, options); !status.ok()) return status;
  return Client::Connect(flags.target, std::move(options));
}

void AddCommonFlags(CLI::App& command, CommonFlags& flags) {
  command.add_option("--target", flags.target, "The server, as host:port or unix:/path")->capture_default_str();
  command.add_flag("--json", flags.json, "Print one JSON object");
  AddDurationFlag(command, "--timeout", "How long a call may take, 0 for any time", flags.timeout);
  command.add_flag("--tls", flags.tls, "Connect by TLS, which the flags below imply");
  command.add_option("--tls_ca", flags.tls_files.ca, "PEM file of the server's roots; without: the system's");
  command.add_option("--tls_certificate", flags.tls_files.certificate, "PEM file of the caller's certificate");
  command.add_option("--tls_key", flags.tls_files.key, "PEM file of its key");
  command.add_option("--tls_server_name", flags.server_name,
                     "The name in the server's certificate; without: the target's");
}

CLI::Option* AddDurationFlag(CLI::App& command, const std::string& name, const std::string& help,
                             absl::Duration& duration) {
  const auto parse = [name, &duration](const std::string& text) { duration = ParseDurationFlag(name, text); };
  return command.add_option_function<std::string>(name, parse, help)
      ->default_str(absl::FormatDuration(duration))
      ->type_name("DURATION");
}

CLI::Option* AddModeFlag(CLI::App& command, v1::SequenceMode& mode) {
  const auto parse = [&mode](const std::string& text) {
    if (text != "causal" && text != "repeat") {
      throw CLI::ValidationError("--mode", absl::StrCat("\"", text, "\" is neither causal nor repeat"));
    }
    mode = text == "causal" ? v1::SEQUENCE_MODE_CAUSAL : v1::SEQUENCE_MODE_REPEAT;
  };
  return command.add_option_function<std::string>("--mode", parse, "causal or repeat")->type_name("MODE");
}

CLI::Option* AddOutputsFlag(CLI::App& command, std::vector<v1::Output>& outputs) {
  const auto parse = [&outputs](const std::string& text) {
    outputs.clear();
    if (text == "all") {
      for (const OutputField& field : AllOutputs()) outputs.push_back(field.output);
      return;
    }
    for (const absl::string_view name : absl::StrSplit(text, ',')) outputs.push_back(ParseOutput(name));
  };
  return command.add_option_function<std::string>("--outputs", parse, "Outputs, separated by commas, or all")
      ->type_name("NAMES")
      ->default_str("seqlens_expanded,nsa_cache_seqlens");
}

CLI::Option* AddLengthsFlag(CLI::App& command, const std::string& name, const std::string& help,
                            std::vector<int32_t>& lengths) {
  const auto parse = [&lengths, name](const std::string& text) {
    lengths.clear();
    for (const absl::string_view length : absl::StrSplit(text, ',', absl::SkipEmpty())) {
      lengths.push_back(ParseLength(name, length));
    }
  };
  return command.add_option_function<std::string>(name, parse, help)->type_name("LENGTHS");
}

}  // namespace nsa::metadata::client
