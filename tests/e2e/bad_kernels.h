// Kernels that do what none of ours does.
#pragma once

namespace nsa::metadata::testing {

// Writes to an address that is nobody's, which ends every CUDA context of the process. Returns the error's name.
const char* WriteOutOfBounds();

// Takes every thread of the device for so long, from now on; returns at once. Empty, or an error's name.
const char* OccupyDevice(int seconds);

}  // namespace nsa::metadata::testing
