// Where arrays and streams of Python's lie.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>

namespace nsa::metadata::local {

// DLPack's kinds of devices (DLDeviceType). Pinned memory counts as the host's.
constexpr int kHostMemory = 1;
constexpr int kCudaMemory = 2;

struct Array {
  int32_t* data = nullptr;
  int64_t length = 0;
  int kind = kHostMemory;
  int device = 0;

  bool IsBeside(const Array& other) const { return kind == other.kind && device == other.device; }
};

// `object` has DLPack. It has to outlive what is done with the answer. std::invalid_argument where it is not
// contiguous, of int32 and of one dimension; nanobind::type_error where it is no array, or can't be written and has to
// be. Both say `name`.
Array ArrayOf(nanobind::handle object, const char* name, bool to_write);

// The cudaStream_t of a stream of torch's, cupy's or CUDA Python's, or of an integer. Of None: the current one of the
// framework that `array`, on `device`, is of, where that can be asked; else the default stream.
uintptr_t StreamOf(nanobind::handle stream, nanobind::handle array, int device);

}  // namespace nsa::metadata::local
