#include "client/python/local.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <array>
#include <limits>
#include <span>
#include <stdexcept>
#include <string_view>
#include <tuple>
#include <vector>

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
  const kernels::BatchedRequest request = {.spec = job.spec,
                                           .extend_seq_lens = job.extend_seq_lens,
                                           .seq_lens = job.seq_lens,
                                           .num_sequences = job.num_sequences,
                                           .total_tokens = total_tokens,
                                           .out = job.out};
  const auto expand = backend == HostBackend::kCpu ? &kernels::ExpandRequestOnCpu : &kernels::ExpandRequestByReference;
  expand(request);
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

// Whether an object of Python's is this string.
bool Is(nb::handle given, std::string_view name) {
  if (!PyUnicode_Check(given.ptr())) return false;
  Py_ssize_t size = 0;
  const char* const text = PyUnicode_AsUTF8AndSize(given.ptr(), &size);
  if (text == nullptr) {
    PyErr_Clear();  // a lone surrogate
    return false;
  }
  return std::string_view(text, static_cast<size_t>(size)) == name;
}

bool IsTrue(nb::handle given) {
  const int truth = PyObject_IsTrue(given.ptr());
  if (truth < 0) throw nb::python_error();
  return truth != 0;
}

kernels::SequenceMode ModeOf(nb::handle given) {
  if (Is(given, "repeat")) return kernels::SequenceMode::kRepeat;
  if (Is(given, "causal")) return kernels::SequenceMode::kCausal;
  throw std::invalid_argument(std::string("mode is ") + nb::repr(given).c_str() + ", want one of repeat, causal");
}

std::optional<Kernel> DeviceKernel(nb::handle given) {
  if (given.is_none()) return std::nullopt;
  for (Kernel kernel : {Kernel::kLinear, Kernel::kBinary, Kernel::kRows, Kernel::kTile}) {
    if (Is(given, kernels::KernelName(kernel))) return kernel;
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

using Outputs = std::array<nb::handle, kernels::kNumOutputs>;

// What fill_draft_extend_metadata gets, not looked at yet.
struct Arguments {
  nb::handle extend_seq_lens;
  nb::handle seq_lens;
  nb::handle nsa_index_topk;
  Outputs outputs;  // None where one is not asked
  nb::handle mode;
  nb::handle kernel;
  nb::handle stream;
  nb::handle synchronize;
};

// Their job, and where its arrays are.
struct FoundJob {
  Job job;
  Array extend_seq_lens;
};

void CheckBeside(const Array& array, const Array& first, const char* name) {
  if (!array.IsBeside(first)) throw std::invalid_argument(std::string(name) + " is not where extend_seq_lens is");
}

FoundJob JobOf(const Arguments& arguments) {
  FoundJob found;
  Job& job = found.job;
  job.spec.mode = ModeOf(arguments.mode);
  for (Output output : kernels::kAllOutputs) {
    if (!arguments.outputs[static_cast<size_t>(output)].is_none()) job.spec.outputs.Add(output);
  }
  job.spec.nsa_index_topk = TopKOf(arguments.nsa_index_topk, job.spec.outputs.HasAny(kernels::kNsaOutputs));
  const Array q = found.extend_seq_lens = ArrayOf(arguments.extend_seq_lens, "extend_seq_lens", false);
  const Array s = ArrayOf(arguments.seq_lens, "seq_lens", false);
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
    const Array array = ArrayOf(arguments.outputs[static_cast<size_t>(output)], name, true);
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

enum class Backend : uint8_t { kCuda, kCpu, kReference };
constexpr int kHost = -1;

// What nsa_metadata.local.backend_of says of a device, or of kHost; asked once, since it takes longer than a launch's
// other steps.
Backend BackendOf(int device) {
  // Guarded by the GIL, and as old as the process.
  static std::vector<std::optional<Backend>>& all = *new std::vector<std::optional<Backend>>;
  const auto index = static_cast<size_t>(device - kHost);
  if (index < all.size() && all[index].has_value()) return *all[index];
  const nb::object argument = device == kHost ? nb::none() : nb::object(nb::int_(device));
  const nb::object name = nb::module_::import_("nsa_metadata.local").attr("backend_of")(argument)[0];
  const Backend backend = Is(name, "cuda")        ? Backend::kCuda
                          : Is(name, "reference") ? Backend::kReference
                                                  : Backend::kCpu;
  if (index >= all.size()) all.resize(index + 1);
  all[index] = backend;
  return backend;
}

HostBackend HostBackendOf(Backend backend) {
  return backend == Backend::kReference ? HostBackend::kReference : HostBackend::kCpu;
}

// nsa_metadata.local's functions that fill.
std::optional<int64_t> Fill(const Arguments& arguments) {
  auto [job, where] = JobOf(arguments);
  if (where.kind == kHostMemory) {
    const HostBackend backend = HostBackendOf(BackendOf(kHost));
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
  const uintptr_t stream = StreamOf(arguments.stream, arguments.extend_seq_lens, where.device);
  const Backend backend = BackendOf(where.device);
  const std::optional<Kernel> kernel = backend == Backend::kCuda ? DeviceKernel(arguments.kernel) : std::nullopt;
  // Without an output that has tokens there is none to write.
  const bool by_token = job.spec.outputs.HasAny(kTokenOutputs);
  job.capacity = by_token ? std::min(job.capacity, kMostOnDevice) : 0;
  const bool wait = IsTrue(arguments.synchronize);
  const nb::gil_scoped_release released;
  const std::optional<int64_t> total = backend == Backend::kCuda
                                           ? ExpandOnDevice(job, kernel, where.device, stream, wait)
                                           : ExpandOnHostForDevice(job, HostBackendOf(backend), where.device, stream);
  if (total.has_value() && by_token && *total > job.capacity) RefuseTotal(*total, job.capacity);
  return wait ? total : std::nullopt;
}

// The functions' signatures and documentation, as Python's help shows them; the types are _local.pyi's.
#define NSA_ARRAYS \
  "extend_seq_lens: Any, seq_lens: Any, nsa_index_topk: int, seqlens_expanded: Any, nsa_cache_seqlens: Any, *, "
#define NSA_OPTIONAL                                                                                             \
  "token_to_batch_idx: Any = None, positions: Any = None, cu_seqlens_q: Any = None, cu_seqlens_k: Any = None, "  \
  "nsa_cu_seqlens_k: Any = None, ks: Any = None, ke: Any = None, stream: Any = None, synchronize: bool = True) " \
  "-> int | None"
constexpr const char* kFillSignature =
    "def fill_draft_extend_metadata(" NSA_ARRAYS "mode: Mode, kernel: Kernel = \"binary\", " NSA_OPTIONAL;
constexpr const char* kFillAdaptiveSignature =
    "def fill_draft_extend_metadata_adaptive(" NSA_ARRAYS "mode: Mode, " NSA_OPTIONAL;
#undef NSA_ARRAYS
#undef NSA_OPTIONAL

constexpr const char* kFillDoc = R"(Writes an expansion into the caller's arrays; returns its number of tokens.

All arrays are contiguous, of int32 and of one dimension, in one place, with DLPack: torch's, cupy's, numpy's; those
that are written have to be writable.

extend_seq_lens, seq_lens: [num_sequences], tokens.
nsa_index_topk: the bound in nsa_cache_seqlens; at least 1 where an output needs it.
seqlens_expanded, nsa_cache_seqlens, and the others by name: room for at least as many tokens as there are
    (nsa_cu_seqlens_k one more; cu_seqlens_q, cu_seqlens_k: num_sequences + 1), or None where an output is not
    asked. What is past the tokens is left as it was.
mode: "repeat" or "causal", without a default: engines differ in it; SGLang's draft_extend is "causal".
kernel: "linear", "binary", "rows" or "tile", the device's; where the host computes it is not looked at.
stream: on a device, a stream of torch's, cupy's or CUDA Python's, or a cudaStream_t as an integer. None: the
    current one of torch, or of another framework whose the lengths are and that says it, else the default stream.
    What the arrays' writers still do has to be before it in the stream's order.
synchronize: False: returns None at once, as soon as it is launched, and can be captured in a CUDA graph; tokens
    that find no room are not written then, and nobody is told. Where the host computes for a device it waits all
    the same, and can't be captured.

On a device lengths are not looked at from here: a negative one counts as 0, and values that pass int32 wrap. On the
host a ValueError names what is wrong, before anything is written. On both it says so where the tokens find no room:
on a device once those that do are written. RuntimeError: a call of CUDA's failed. Threads may call it at once, for
arrays that are not the same.)";

constexpr const char* kFillAdaptiveDoc =
    "As fill_draft_extend_metadata, by the kernel that measured best for as many sequences and tokens as have room.";

}  // namespace

NB_MODULE(_local, module) {
  module.doc() =
      "Arrays written in place, in this process. nsa_metadata.local has its functions, and says what computes.";
  module.def("look_at_device", [](int device) {
    Device found = LookAtDevice(device);
    return std::make_tuple(std::move(found.unusable), std::move(found.tier), std::move(found.name));
  });
  const auto given = [](const char* name) { return nb::arg(name).none(); };
  const auto left_out = [](const char* name) { return nb::arg(name).none() = nb::none(); };
  using Any = nb::handle;
  module.def(
      "fill_draft_extend_metadata",
      [](Any q, Any s, Any top_k, Any expanded, Any cache, Any mode, Any kernel, Any to_batch, Any positions, Any cu_q,
         Any cu_k, Any nsa_cu_k, Any ks, Any ke, Any stream, Any synchronize) {
        const Outputs outputs = {expanded, cache, to_batch, positions, cu_q, cu_k, nsa_cu_k, ks, ke};
        return Fill({q, s, top_k, outputs, mode, kernel, stream, synchronize});
      },
      kFillDoc, nb::sig(kFillSignature), given("extend_seq_lens"), given("seq_lens"), given("nsa_index_topk"),
      given("seqlens_expanded"), given("nsa_cache_seqlens"), nb::kw_only(), given("mode"), nb::arg("kernel") = "binary",
      left_out("token_to_batch_idx"), left_out("positions"), left_out("cu_seqlens_q"), left_out("cu_seqlens_k"),
      left_out("nsa_cu_seqlens_k"), left_out("ks"), left_out("ke"), left_out("stream"), nb::arg("synchronize") = true);
  module.def(
      "fill_draft_extend_metadata_adaptive",
      [](Any q, Any s, Any top_k, Any expanded, Any cache, Any mode, Any to_batch, Any positions, Any cu_q, Any cu_k,
         Any nsa_cu_k, Any ks, Any ke, Any stream, Any synchronize) {
        const Outputs outputs = {expanded, cache, to_batch, positions, cu_q, cu_k, nsa_cu_k, ks, ke};
        return Fill({q, s, top_k, outputs, mode, nb::none(), stream, synchronize});
      },
      kFillAdaptiveDoc, nb::sig(kFillAdaptiveSignature), given("extend_seq_lens"), given("seq_lens"),
      given("nsa_index_topk"), given("seqlens_expanded"), given("nsa_cache_seqlens"), nb::kw_only(), given("mode"),
      left_out("token_to_batch_idx"), left_out("positions"), left_out("cu_seqlens_q"), left_out("cu_seqlens_k"),
      left_out("nsa_cu_seqlens_k"), left_out("ks"), left_out("ke"), left_out("stream"), nb::arg("synchronize") = true);
}

}  // namespace nsa::metadata::local
