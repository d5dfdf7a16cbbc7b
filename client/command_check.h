// nsa-metadata check: an engine's arrays beside those that they are to be.
#pragma once

#include <CLI/CLI.hpp>

namespace nsa::metadata::client {

// Adds the command, which leaves its end in `exit_code`.
void AddCheckCommand(CLI::App& program, int& exit_code);

}  // namespace nsa::metadata::client
