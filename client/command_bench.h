// nsa-metadata bench: a known load, and what it measured.
#pragma once

#include <CLI/CLI.hpp>

namespace nsa::metadata::client {

// Adds the subcommand to `program`. It runs while `program` parses its arguments, and leaves in `exit_code` how the
// program shall end.
void AddBenchCommand(CLI::App& program, int& exit_code);

}  // namespace nsa::metadata::client
