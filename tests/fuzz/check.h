// What a fuzz target finds wrong ends the process.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>

namespace nsa::metadata::testing {

inline void Check(bool holds, const std::string& what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what.c_str());
  std::abort();
}

}  // namespace nsa::metadata::testing
