// The program nsa-metadata as its users run it.
#pragma once

#include <sys/wait.h>

#include <cstdio>
#include <string>

namespace nsa::metadata::client {

struct Outcome {
  int exit_code = -1;
  // Both stdout and stderr.
  std::string output;
};

// Runs the program; `arguments` go through a shell.
inline Outcome RunProgram(const std::string& arguments) {
  Outcome outcome;
  FILE* const pipe = popen((std::string(NSA_METADATA_PROGRAM) + " " + arguments + " 2>&1").c_str(), "r");
  char buffer[4096];
  while (const size_t bytes = fread(buffer, 1, sizeof(buffer), pipe)) outcome.output.append(buffer, bytes);
  outcome.exit_code = WEXITSTATUS(pclose(pipe));
  return outcome;
}

}  // namespace nsa::metadata::client
