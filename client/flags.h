// The flags that several subcommands have.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/client.h"
#include "client/tls.h"
#include "nsa/metadata/v1/metadata.pb.h"

namespace nsa::metadata::client {

// Flags that each subcommand has.
struct CommonFlags {
  std::string target = "127.0.0.1:50051";
  bool json = false;
  absl::Duration timeout = absl::Seconds(30);
  // By TLS if any of these is given.
  bool tls = false;
  TlsFiles tls_files = {};
  std::string server_name = {};
};

// What `flags` say of connections, in `options`. INVALID_ARGUMENT as TlsCredentials.
absl::Status SetConnection(const CommonFlags& flags, ClientOptions& options);
// A client of `flags.target`, with flags.timeout and that.
absl::StatusOr<std::unique_ptr<Client>> Connect(const CommonFlags& flags, ClientOptions options = {});

// The functions below add flags whose values go where the last argument points, which has to outlive the parsing. A
// value that can't be read ends the parsing with a CLI::ValidationError.
void AddCommonFlags(CLI::App& command, CommonFlags& flags);
// As 30s, 500ms or 0; not negative.
CLI::Option* AddDurationFlag(CLI::App& command, const std::string& name, const std::string& help,
                             absl::Duration& duration);
// causal | repeat.
CLI::Option* AddModeFlag(CLI::App& command, v1::SequenceMode& mode);
// Names of outputs, separated by commas, or "all".
CLI::Option* AddOutputsFlag(CLI::App& command, std::vector<v1::Output>& outputs);
// Whole numbers, separated by commas; empty for none.
CLI::Option* AddLengthsFlag(CLI::App& command, const std::string& name, const std::string& help,
                            std::vector<int32_t>& lengths);

}  // namespace nsa::metadata::client
