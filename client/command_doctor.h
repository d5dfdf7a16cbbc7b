// `nsa-metadata doctor`.
#pragma once

#include <CLI/CLI.hpp>

namespace nsa::metadata::client {

// Adds the subcommand. What it finds goes to stdout, its outcome to `exit_code`, which has to outlive the parsing.
void AddDoctorCommand(CLI::App& program, int& exit_code);

}  // namespace nsa::metadata::client
