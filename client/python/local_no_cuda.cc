#include <stdexcept>

#include "client/python/local.h"

namespace nsa::metadata::local {
namespace {

[[noreturn]] void Refuse() { throw std::runtime_error("this build of nsa_metadata.local has no CUDA"); }

}  // namespace

bool HasCuda() { return false; }

Device LookAtDevice(int) { Refuse(); }

std::optional<int64_t> ExpandOnDevice(const Job&, std::optional<kernels::Kernel>, int, uintptr_t, bool) { Refuse(); }

int64_t ExpandOnHostForDevice(const Job&, HostBackend, int, uintptr_t) { Refuse(); }

}  // namespace nsa::metadata::local
