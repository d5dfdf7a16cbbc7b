#include "client/python/local.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>

#include <limits>
#include <span>
#include <stdexcept>
#include <string_view>
#include <tuple>

#include "kernels/cpu.h"
#include "kernels/kernel.h"
#include "kernels/measure.h"
#include "kernels/outputs.h"
#include "kernels/reference.h"

namespace nsa::metadata::local {
namespace {

namespace nb = nanobind;
using kernels::Kernel;
using kernels::Output;

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

// For people, as "seq_lens[3] is -1, want at least 0".
std::string Wrong(const std::string& what, int64_t value, const std::string& want) {
  return what + " is " + std::to_string(value) + ", want " + want;
}

void CheckLengths(const char* name, std::span<const int32_t> lengths) {
  const std::optional<size_t> negative = kernels::FirstNegative(lengths);
  if (!negative.has_value()) return;
  throw std::invalid_argument(
      Wrong(std::string(name) + "[" + std::to_string(*negative) + "]", lengths[*negative], "at least 0"));
}

kernels::OutputSet AskedOutputs(const kernels::OutputPointers& out) {
  kernels::OutputSet asked;
  for (Output output : kernels::kAllOutputs) {
    if (out[static_cast<size_t>(output)] != nullptr) asked.Add(output);
  }
  return asked;
}

}  // namespace

void ExpandUnchecked(const Job& job, int64_t total_tokens, HostBackend backend) {
  const kernels::PackedRequest request = {.spec = job.spec,
                                          .first_sequence = 0,
                                          .num_sequences = job.num_sequences,
                                          .first_token = 0,
                                          .total_tokens = total_tokens,
                                          .out = job.out};
  const auto expand = backend == HostBackend::kCpu ? &kernels::ExpandRequestOnCpu : &kernels::ExpandRequestByReference;
  expand(request, job.extend_seq_lens, job.seq_lens);
}

int64_t ExpandOnHost(const Job& job, HostBackend backend) {
  const std::span q(job.extend_seq_lens, static_cast<size_t>(job.num_sequences));
  const std::span s(job.seq_lens, static_cast<size_t>(job.num_sequences));
  CheckLengths("extend_seq_lens", q);
  CheckLengths("seq_lens", s);
  const int64_t total_tokens = kernels::Sum(q);
  if (total_tokens > job.capacity) {
    throw std::invalid_argument(Wrong("the sum of extend_seq_lens", total_tokens,
                                      "at most " + std::to_string(job.capacity) + ", the outputs' room"));
  }
  job.spec.outputs.ForEach([&](Output output) {
    const int64_t largest = kernels::LargestValue(output, job.spec, q, s);
    if (largest <= kInt32Max) return;
    throw std::invalid_argument(Wrong(std::string("the largest value of ") + kernels::OutputName(output), largest,
                                      "at most " + std::to_string(kInt32Max)));
  });
  ExpandUnchecked(job, total_tokens, backend);
  return total_tokens;
}

namespace {

// Python's side of a Job: addresses as integers, 0 for none.
using Addresses = std::array<uintptr_t, kernels::kNumOutputs>;

Job JobOf(uintptr_t extend_seq_lens, uintptr_t seq_lens, int64_t num_sequences, int32_t nsa_index_topk, int mode,
          const Addresses& out, int64_t capacity) {
  Job job;
  job.extend_seq_lens = reinterpret_cast<const int32_t*>(extend_seq_lens);
  job.seq_lens = reinterpret_cast<const int32_t*>(seq_lens);
  job.num_sequences = num_sequences;
  for (size_t i = 0; i < out.size(); ++i) job.out[i] = reinterpret_cast<int32_t*>(out[i]);
  job.spec = {.nsa_index_topk = nsa_index_topk,
              .mode = static_cast<kernels::SequenceMode>(mode),
              .outputs = AskedOutputs(job.out)};
  job.capacity = capacity;
  return job;
}

HostBackend HostBackendOf(std::string_view name) {
  return name == "reference" ? HostBackend::kReference : HostBackend::kCpu;
}

std::optional<Kernel> DeviceKernel(const std::optional<std::string>& name) {
  if (!name.has_value()) return std::nullopt;
  for (Kernel kernel : {Kernel::kLinear, Kernel::kBinary, Kernel::kRows, Kernel::kTile}) {
    if (kernels::KernelName(kernel) == *name) return kernel;
  }
  throw std::invalid_argument("kernel is '" + *name + "', want one of linear, binary, rows, tile");
}

// Where an array lies: its address, its length, and DLPack's kind and number of its device.
template <typename Array>
std::tuple<uintptr_t, int64_t, int, int> View(const Array& array, const char* name) {
  const nb::dlpack::dtype int32 = nb::dtype<int32_t>();
  if (array.dtype() != int32 || array.ndim() != 1 || (array.shape(0) > 1 && array.stride(0) != 1)) {
    throw std::invalid_argument(std::string(name) + " is no contiguous int32 array of one dimension");
  }
  return {reinterpret_cast<uintptr_t>(array.data()), static_cast<int64_t>(array.shape(0)), array.device_type(),
          array.device_id()};
}

}  // namespace

NB_MODULE(_local, module) {
  module.doc() = "Addresses in, arrays written in place. nsa_metadata.local checks what they are.";
  module.def("has_cuda", &HasCuda);
  module.def("look_at_device", [](int device) {
    Device found = LookAtDevice(device);
    return std::make_tuple(std::move(found.unusable), std::move(found.tier), std::move(found.name));
  });
  module.def("view_to_read", [](const nb::ndarray<nb::ro>& array, const char* name) { return View(array, name); });
  module.def("view_to_write", [](const nb::ndarray<>& array, const char* name) { return View(array, name); });
  module.def("expand_on_host", [](uintptr_t q, uintptr_t s, int64_t num_sequences, int32_t nsa_index_topk, int mode,
                                  const Addresses& out, int64_t capacity, std::string_view backend) {
    const Job job = JobOf(q, s, num_sequences, nsa_index_topk, mode, out, capacity);
    const nb::gil_scoped_release released;
    return ExpandOnHost(job, HostBackendOf(backend));
  });
  module.def("expand_on_device",
             [](uintptr_t q, uintptr_t s, int64_t num_sequences, int32_t nsa_index_topk, int mode, const Addresses& out,
                int64_t capacity, const std::optional<std::string>& kernel, int device, uintptr_t stream, bool wait) {
               const Job job = JobOf(q, s, num_sequences, nsa_index_topk, mode, out, capacity);
               const std::optional<Kernel> chosen = DeviceKernel(kernel);
               const nb::gil_scoped_release released;
               return ExpandOnDevice(job, chosen, device, stream, wait);
             });
  module.def("expand_on_host_for_device",
             [](uintptr_t q, uintptr_t s, int64_t num_sequences, int32_t nsa_index_topk, int mode, const Addresses& out,
                int64_t capacity, std::string_view backend, int device, uintptr_t stream) {
               const Job job = JobOf(q, s, num_sequences, nsa_index_topk, mode, out, capacity);
               const nb::gil_scoped_release released;
               return ExpandOnHostForDevice(job, HostBackendOf(backend), device, stream);
             });
}

}  // namespace nsa::metadata::local
