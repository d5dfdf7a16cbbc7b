// To be called before a channel is made.
#pragma once

#include "absl/base/internal/sysinfo.h"

namespace nsa::metadata::client {

// gRPC 1.51.1 reads connect()'s errno only after it has taken locks. The first lock of a process that has to wait makes
// abseil look up the processor's frequency, in a file that not every machine has: then a connection that was on its way
// fails with ENOENT, seen once in some hundred processes. So it is looked up before.
inline void PrepareGrpc() { absl::base_internal::NominalCPUFrequency(); }

}  // namespace nsa::metadata::client
