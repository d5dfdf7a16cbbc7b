// The server's flags.
#pragma once

#include "server/options.h"

namespace nsa::metadata::server {

// What the environment (NSA_METADATA_<FLAG>) and then the command line say. Answers --help and --version, and ends the
// process at what it can't read, saying what.
Options OptionsFromCommandLine(int argc, char** argv);

}  // namespace nsa::metadata::server
