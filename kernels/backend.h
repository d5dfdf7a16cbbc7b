// What computes expansions, behind one interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/kernel.h"
#include "kernels/request_batch.h"

namespace nsa::metadata::kernels {

// The values are those of the wire.
enum class BackendKind : uint8_t { kCuda = 1, kCpu = 2, kReference = 3 };

// "cuda", "cpu" or "reference".
std::string_view BackendName(BackendKind kind);

// How much one batch may hold.
struct LaneLimits {
  int64_t max_sequences = 0;
  int64_t max_requests = 0;
};

// Memory that a backend can write outputs into and gRPC can send from; given back by the destructor. Pages are aligned,
// zero when new.
class HostBuffer {
 public:
  using Free = void (*)(void* data, size_t bytes);
  HostBuffer(void* data, size_t bytes, Free free) : data_(data, Deleter{bytes, free}) {}

  uint8_t* data() const { return static_cast<uint8_t*>(data_.get()); }
  size_t bytes() const { return data_.get_deleter().bytes; }

 private:
  struct Deleter {
    size_t bytes;
    Free free;
    void operator()(void* data) const { free(data, bytes); }
  };
  std::unique_ptr<void, Deleter> data_;
};

// Pageable memory, committed as it is touched. RESOURCE_EXHAUSTED when there is no room.
absl::StatusOr<HostBuffer> AllocatePageable(size_t bytes);

// One stream of work with its input buffers. Used by one thread at a time; lanes of one backend may work at the same
// time.
class Lane {
 public:
  virtual ~Lane() = default;

  // The batch to fill before Expand; empty at first.
  virtual RequestBatch& batch() = 0;

  // Computes every asked output of every request in batch(), and nothing else. Blocks until they are written. Returns
  // what computed them. An error is the end of the backend, all its lanes and its memory for outputs included: outputs
  // are undefined, and a device may still write to them at any time. batch() stays as it was. RESOURCE_EXHAUSTED when
  // memory was lacking, DEADLINE_EXCEEDED when the device was not done in time, UNAVAILABLE for every other failure.
  virtual absl::StatusOr<Kernel> Expand() = 0;
};

// Thread-safe.
class Backend {
 public:
  virtual ~Backend() = default;

  virtual BackendKind kind() const = 0;
  // The device's name, for people.
  virtual std::string device() const = 0;

  // A lane. The backend outlives it. An error, naming what was asked for, when there is no memory for it.
  virtual absl::StatusOr<std::unique_ptr<Lane>> CreateLane(const LaneLimits& limits) = 0;

  // Memory for outputs.
  virtual absl::StatusOr<HostBuffer> AllocateOutput(size_t bytes) = 0;
};

// Computes with the vectorised CPU code.
std::unique_ptr<Backend> CreateCpuBackend();

// Computes token by token from the definitions: slow, plain, what the others are tested against.
std::unique_ptr<Backend> CreateReferenceBackend();

}  // namespace nsa::metadata::kernels
