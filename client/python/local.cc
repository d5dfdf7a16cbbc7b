#include "client/python/local.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <limits>
#include <span>
#include <stdexcept>
#include <string_view>
#include <tuple>

#include "client/python/arrays.h"
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

[[noreturn]] void RefuseTotal(int64_t total_tokens, int64_t capacity) {
  throw std::invalid_argument(
      Wrong("the sum of extend_seq_lens", total_tokens, "at most " + std::to_string(capacity) + ", the outputs' room"));
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
  if (total_tokens > job.capacity) RefuseTotal(total_tokens, job.capacity);
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

// Those of which a token has a value.
constexpr kernels::OutputSet kTokenOutputs = {Output::kSeqlensExpanded,
                                              Output::kNsaCacheSeqlens,
                                              Output::kTokenToBatchIdx,
                                              Output::kPositions,
                                              Output::kNsaCuSeqlensK,
                                              Output::kKs,
                                              Output::kKe};

HostBackend HostBackendOf(std::string_view name) {
  return name == "reference" ? HostBackend::kReference : HostBackend::kCpu;
}

std::optional<Kernel> DeviceKernel(nb::handle given) {
  if (given.is_none()) return std::nullopt;
  std::string name;
  if (nb::try_cast(given, name)) {
    for (Kernel kernel : {Kernel::kLinear, Kernel::kBinary, Kernel::kRows, Kernel::kTile}) {
      if (kernels::KernelName(kernel) == name) return kernel;
    }
  }
  throw std::invalid_argument(std::string("kernel is ") + nb::repr(given).c_str() +
                              ", want one of linear, binary, rows, tile");
}

// `asked`: whether an output needs it.
int32_t TopKOf(nb::handle given, bool asked) {
  const nb::object index = nb::steal(PyNumber_Index(given.ptr()));
  if (!index.is_valid()) throw nb::python_error();
  int overflow = 0;
  const long long top_k = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  if (overflow > 0 || top_k > kInt32Max) {
    throw std::invalid_argument(std::string("nsa_index_topk is ") + nb::str(index).c_str() + ", want at most " +
                                std::to_string(kInt32Max));
  }
  if (overflow == 0 && top_k >= 1) return static_cast<int32_t>(top_k);
  if (asked) {
    throw std::invalid_argument(std::string("nsa_index_topk is ") + nb::str(index).c_str() + ", want at least 1");
  }
  return 0;
}

// A job as Python has it, and where its arrays are.
struct FoundJob {
  Job job;
  Array extend_seq_lens;
};

void CheckBeside(const Array& array, const Array& first, const char* name) {
  if (!array.IsBeside(first)) throw std::invalid_argument(std::string(name) + " is not where extend_seq_lens is");
}

// `outputs`: of kAllOutputs, None where one is not asked.
FoundJob JobOf(nb::handle extend_seq_lens, nb::handle seq_lens, nb::handle nsa_index_topk, nb::tuple outputs,
               int mode) {
  if (outputs.size() != kernels::kNumOutputs) throw std::invalid_argument("outputs are not as many as there are");
  FoundJob found;
  Job& job = found.job;
  job.spec.mode = static_cast<kernels::SequenceMode>(mode);
  for (Output output : kernels::kAllOutputs) {
    if (!outputs[static_cast<size_t>(output)].is_none()) job.spec.outputs.Add(output);
  }
  job.spec.nsa_index_topk = TopKOf(nsa_index_topk, job.spec.outputs.HasAny(kernels::kNsaOutputs));
  const Array q = found.extend_seq_lens = ArrayOf(extend_seq_lens, "extend_seq_lens", false);
  const Array s = ArrayOf(seq_lens, "seq_lens", false);
  if (q.length != s.length) {
    throw std::invalid_argument("extend_seq_lens has " + std::to_string(q.length) + " sequences, seq_lens " +
                                std::to_string(s.length));
  }
  CheckBeside(s, q, "seq_lens");
  job.extend_seq_lens = q.data;
  job.seq_lens = s.data;
  job.num_sequences = q.length;
  job.capacity = kInt32Max;
  job.spec.outputs.ForEach([&](Output output) {
    const char* const name = kernels::OutputName(output);
    const Array array = ArrayOf(outputs[static_cast<size_t>(output)], name, true);
    CheckBeside(array, q, name);
    const int64_t least = kernels::OutputLength(output, q.length, 0);
    if (array.length < least) {
      throw std::invalid_argument(std::string(name) + " has room for " + std::to_string(array.length) +
                                  " values, want at least " + std::to_string(least));
    }
    if (kTokenOutputs.Has(output)) job.capacity = std::min(job.capacity, array.length - least);
    job.out[static_cast<size_t>(output)] = array.data;
  });
  return found;
}

// nsa_metadata.local._fill: `backend_of` says for a device, or for None, what computes.
std::optional<int64_t> Fill(nb::handle extend_seq_lens, nb::handle seq_lens, nb::handle nsa_index_topk,
                            nb::tuple outputs, int mode, nb::handle kernel_name, nb::handle stream, bool synchronize,
                            nb::handle backend_of) {
  auto [job, where] = JobOf(extend_seq_lens, seq_lens, nsa_index_topk, outputs, mode);
  if (where.kind == kHostMemory) {
    const auto backend = HostBackendOf(nb::cast<std::string>(backend_of(nb::none())[0]));
    const nb::gil_scoped_release released;
    return ExpandOnHost(job, backend);
  }
  if (where.kind != kCudaMemory) {
    throw std::invalid_argument("the arrays are on a device of DLPack's kind " + std::to_string(where.kind) +
                                ", want the host or a CUDA device");
  }
  if (!HasCuda()) {
    throw std::runtime_error(
        "the arrays are on a CUDA device, and nsa_metadata.local was built without CUDA: build it where nvcc is");
  }
  const uintptr_t handle = StreamOf(stream, extend_seq_lens, where.device);
  const auto backend = nb::cast<std::string>(backend_of(where.device)[0]);
  const std::optional<Kernel> kernel = backend == "cuda" ? DeviceKernel(kernel_name) : std::nullopt;
  // Without an output that has tokens there is none to write.
  const bool by_token = job.spec.outputs.HasAny(kTokenOutputs);
  job.capacity = by_token ? std::min(job.capacity, kMostOnDevice) : 0;
  const nb::gil_scoped_release released;
  const std::optional<int64_t> total = backend == "cuda"
                                           ? ExpandOnDevice(job, kernel, where.device, handle, synchronize)
                                           : ExpandOnHostForDevice(job, HostBackendOf(backend), where.device, handle);
  if (total.has_value() && by_token && *total > job.capacity) RefuseTotal(*total, job.capacity);
  return synchronize ? total : std::nullopt;
}

}  // namespace

NB_MODULE(_local, module) {
  module.doc() = "Arrays written in place, in this process. nsa_metadata.local says what computes, and documents it.";
  module.def("look_at_device", [](int device) {
    Device found = LookAtDevice(device);
    return std::make_tuple(std::move(found.unusable), std::move(found.tier), std::move(found.name));
  });
  const auto any = nb::arg().none();
  module.def("fill", &Fill, any, any, any, nb::arg(), nb::arg(), any, any, nb::arg(), nb::arg());
}

}  // namespace nsa::metadata::local
