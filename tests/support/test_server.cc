// nsa-metadata-test-server: the server as it is, with all its flags, on a device that does what the flags here say.

#include "absl/flags/flag.h"
#include "absl/time/time.h"
#include "server/command_line.h"
#include "server/run.h"
#include "tests/support/faulty_backend.h"

ABSL_FLAG(absl::Duration, batch_time, absl::ZeroDuration(), "How long each batch takes");
ABSL_FLAG(int64_t, fail_at, 0, "The batch that fails, from 1, and all after it; 0: none");
ABSL_FLAG(absl::Duration, time_to_fail, absl::ZeroDuration(), "How long it takes to fail");

ABSL_FLAG(int64_t, leak, 0, "Bytes that each batch takes and never gives back");

int main(int argc, char** argv) {
  const nsa::metadata::server::Options options = nsa::metadata::server::OptionsFromCommandLine(argc, argv);
  static nsa::metadata::testing::Faults faults;
  faults.batch_time = absl::ToChronoNanoseconds(absl::GetFlag(FLAGS_batch_time));
  faults.fail_at = absl::GetFlag(FLAGS_fail_at);
  faults.time_to_fail = absl::ToChronoNanoseconds(absl::GetFlag(FLAGS_time_to_fail));
  faults.leak = static_cast<size_t>(absl::GetFlag(FLAGS_leak));
  nsa::metadata::server::Surroundings surroundings;
  surroundings.backend = nsa::metadata::testing::MakeFaultyBackend(faults);
  nsa::metadata::server::ServeAndExit(options, std::move(surroundings));
}
