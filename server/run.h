// A server as a process.
#pragma once

#include "server/options.h"
#include "server/server.h"

namespace nsa::metadata::server {

// Serves until SIGTERM or SIGINT, or until the device has failed where `options` say to end then; drains, and ends the
// process: with a failure when it did not start or its device failed. Logs where it serves, or why it does not. Called
// before any thread is made, so that all leave the signals to it.
[[noreturn]] void ServeAndExit(const Options& options, Surroundings surroundings = {});

}  // namespace nsa::metadata::server
