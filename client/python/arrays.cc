#include "client/python/arrays.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace nsa::metadata::local {
namespace {

namespace nb = nanobind;
using nb::dlpack::dltensor;

constexpr int kPinnedMemory = 3;

// What a type of arrays has in C for callers that can do without `__dlpack__`, which takes longer than an expansion,
// and may make streams wait for each other: DLPackExchangeAPI of dlpack.h, since DLPack 1.3. It is there for as long as
// the process.
struct ExchangeApi {
  uint32_t major;
  uint32_t minor;
  const ExchangeApi* before;  // the same of an earlier major version, or null
  void* owning[3];            // not used here
  int (*view)(void* object, dltensor* out);
  int (*current_stream)(int kind, int32_t device, void** out);
};

// Null where torch was not imported, or `object` is no tensor of its.
nb::object TorchOf(nb::handle object) {
  nb::object torch = nb::steal(PyImport_GetModule(nb::str("torch").ptr()));
  if (!torch.is_valid()) {
    PyErr_Clear();
    return {};
  }
  const nb::object tensor = nb::getattr(torch, "Tensor", nb::none());
  if (!PyType_Check(tensor.ptr()) || !nb::isinstance(object, tensor)) return {};
  return torch;
}

// What there is to know of a type of arrays.
struct Known {
  nb::object type;  // held, so that no other comes to lie there
  const ExchangeApi* api = nullptr;
  bool is_tensor = false;  // torch's
};

const Known& KnownOf(nb::handle object) {
  // The last that was asked: most arrays are of one type. Guarded by the GIL, and as old as the process.
  static Known& last = *new Known;
  const nb::handle type = object.type();
  if (type.is(last.type)) return last;
  Known found = {.type = nb::borrow(type), .api = nullptr, .is_tensor = TorchOf(object).is_valid()};
  const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  if (constexpr const char* kName = "dlpack_exchange_api"; PyCapsule_IsValid(capsule.ptr(), kName) != 0) {
    found.api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), kName));
  }
  while (found.api != nullptr && found.api->major != 1) found.api = found.api->before;
  std::swap(last, found);
  return last;
}

std::string TypeName(nb::handle object) { return nb::str(object.type().attr("__name__")).c_str(); }

[[noreturn]] void RefuseLayout(const char* name) {
  throw std::invalid_argument(std::string(name) + " is no contiguous int32 array of one dimension");
}

Array Located(void* data, int64_t length, int kind, int device) {
  if (kind == kPinnedMemory || kind == kHostMemory) return {static_cast<int32_t*>(data), length, kHostMemory, 0};
  return {static_cast<int32_t*>(data), length, kind, device};
}

Array ArrayOfView(const dltensor& view, const char* name) {
  if (view.dtype != nb::dtype<int32_t>() || view.ndim != 1) RefuseLayout(name);
  if (view.shape[0] > 1 && view.strides != nullptr && view.strides[0] != 1) RefuseLayout(name);
  return Located(static_cast<char*>(view.data) + view.byte_offset, view.shape[0], view.device.device_type,
                 view.device.device_id);
}

// By its attributes: for torch whose tensors have no such functions, and to say on which device they can't be taken.
Array ArrayOfTensor(nb::handle tensor, nb::handle torch, const char* name) {
  if (!tensor.attr("dtype").is(torch.attr("int32")) || nb::cast<int>(tensor.attr("dim")()) != 1 ||
      !nb::cast<bool>(tensor.attr("is_contiguous")())) {
    RefuseLayout(name);
  }
  const nb::object device = tensor.attr("device");
  const auto type = nb::cast<std::string>(device.attr("type"));
  if (type != "cuda" && type != "cpu") {
    throw std::invalid_argument(std::string(name) + " is on " + nb::str(device).c_str() +
                                ", want the host or a CUDA device");
  }
  auto* const data = reinterpret_cast<void*>(nb::cast<uintptr_t>(tensor.attr("data_ptr")()));
  const auto length = nb::cast<int64_t>(tensor.attr("numel")());
  return type == "cuda" ? Located(data, length, kCudaMemory, nb::cast<int>(device.attr("index")))
                        : Located(data, length, kHostMemory, 0);
}

template <typename NdArray>
Array ArrayByDlpack(nb::handle object, const char* name, const char* want) {
  NdArray array;
  if (!nb::try_cast<NdArray>(object, array, false)) {
    throw nb::type_error((std::string(name) + " is a " + TypeName(object) + ", want " + want).c_str());
  }
  if (array.dtype() != nb::dtype<int32_t>() || array.ndim() != 1) RefuseLayout(name);
  if (array.shape(0) > 1 && array.stride(0) != 1) RefuseLayout(name);
  return Located(const_cast<void*>(static_cast<const void*>(array.data())), static_cast<int64_t>(array.shape(0)),
                 array.device_type(), array.device_id());
}

uintptr_t HandleOf(nb::handle integer) {
  const size_t handle = PyLong_AsSize_t(integer.ptr());
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
  return handle;
}

}  // namespace

Array ArrayOf(nb::handle object, const char* name, bool to_write) {
  const Known& known = KnownOf(object);
  const bool is_tensor = known.is_tensor;
  // A view doesn't say whether its array may be written; a tensor may.
  if (const ExchangeApi* api = known.api; api != nullptr && api->view != nullptr && (!to_write || is_tensor)) {
    dltensor view;
    if (api->view(object.ptr(), &view) != 0) {
      PyErr_Clear();  // what follows says what it is
    } else if (const int kind = view.device.device_type;
               kind == kCudaMemory || kind == kHostMemory || kind == kPinnedMemory) {
      return ArrayOfView(view, name);
    }
  }
  if (is_tensor) return ArrayOfTensor(object, TorchOf(object), name);
  return to_write ? ArrayByDlpack<nb::ndarray<>>(object, name, "an array that can be written, with DLPack")
                  : ArrayByDlpack<nb::ndarray<nb::ro>>(object, name, "an array with DLPack");
}

uintptr_t StreamOf(nb::handle stream, nb::handle array, int device) {
  nb::object current;
  if (stream.is_none()) {
    const Known& known = KnownOf(array);
    if (known.api != nullptr) {
      void* found = nullptr;
      if (known.api->current_stream(kCudaMemory, device, &found) == 0) return reinterpret_cast<uintptr_t>(found);
      if (PyErr_Occurred() != nullptr) throw nb::python_error();
      throw std::runtime_error("the current stream of device " + std::to_string(device) + " can't be had");
    }
    if (!known.is_tensor) return 0;
    current = TorchOf(array).attr("cuda").attr("current_stream")(device);
    stream = current;
  }
  if (PyLong_Check(stream.ptr())) return HandleOf(stream);
  for (const char* attribute : {"cuda_stream", "ptr"}) {  // torch's, cupy's
    const nb::object handle = nb::getattr(stream, attribute, nb::none());
    if (PyLong_Check(handle.ptr())) return HandleOf(handle);
  }
  if (nb::hasattr(stream, "__cuda_stream__")) return HandleOf(nb::int_(stream.attr("__cuda_stream__")()[1]));
  throw nb::type_error(("stream is a " + TypeName(stream) + ", want a CUDA stream or its handle").c_str());
}

}  // namespace nsa::metadata::local
