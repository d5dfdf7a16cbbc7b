#include "client/python/arrays.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>
#include <string>

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

// Null where the type of `object` has none.
const ExchangeApi* ExchangeApiOf(nb::handle object) {
  // The last that was asked: most arrays are of one type. Held, so that no other type comes to lie there. Both are the
  // GIL's.
  static PyObject* last_type = nullptr;
  static const ExchangeApi* last = nullptr;
  const nb::handle type = object.type();
  if (type.ptr() == last_type) return last;
  const nb::object capsule = nb::getattr(type, "__dlpack_c_exchange_api__", nb::none());
  const ExchangeApi* api = nullptr;
  if (constexpr const char* kName = "dlpack_exchange_api"; PyCapsule_IsValid(capsule.ptr(), kName) != 0) {
    api = static_cast<const ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), kName));
  }
  while (api != nullptr && api->major != 1) api = api->before;
  Py_XDECREF(last_type);
  last_type = type.inc_ref().ptr();
  last = api;
  return api;
}

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

// By its attributes, for torch before 2.11, and for what its table doesn't say.
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
    throw nb::type_error((std::string(name) + " is a " + Py_TYPE(object.ptr())->tp_name + ", want " + want).c_str());
  }
  if (array.dtype() != nb::dtype<int32_t>() || array.ndim() != 1) RefuseLayout(name);
  if (array.shape(0) > 1 && array.stride(0) != 1) RefuseLayout(name);
  return Located(const_cast<void*>(static_cast<const void*>(array.data())), static_cast<int64_t>(array.shape(0)),
                 array.device_type(), array.device_id());
}

}  // namespace

Array ArrayOf(nb::handle object, const char* name, bool to_write) {
  if (const ExchangeApi* api = ExchangeApiOf(object); api != nullptr && api->view != nullptr) {
    dltensor view;
    if (api->view(object.ptr(), &view) != 0) {
      PyErr_Clear();  // what follows says what it is
    } else if (!to_write || view.device.device_type == kCudaMemory) {
      return ArrayOfView(view, name);  // which doesn't say of the host's whether they may be written
    }
  }
  if (const nb::object torch = TorchOf(object); torch.is_valid()) return ArrayOfTensor(object, torch, name);
  return to_write ? ArrayByDlpack<nb::ndarray<>>(object, name, "an array that can be written, with DLPack")
                  : ArrayByDlpack<nb::ndarray<nb::ro>>(object, name, "an array with DLPack");
}

uintptr_t StreamOf(nb::handle stream, nb::handle array, int device) {
  nb::object current;
  if (stream.is_none()) {
    if (const ExchangeApi* api = ExchangeApiOf(array); api != nullptr) {
      void* found = nullptr;
      if (api->current_stream(kCudaMemory, device, &found) != 0) throw nb::python_error();
      return reinterpret_cast<uintptr_t>(found);
    }
    const nb::object torch = TorchOf(array);
    if (!torch.is_valid()) return 0;
    current = torch.attr("cuda").attr("current_stream")(device);
    stream = current;
  }
  if (PyLong_Check(stream.ptr())) return nb::cast<uintptr_t>(stream);
  for (const char* attribute : {"cuda_stream", "ptr"}) {  // torch's, cupy's
    const nb::object handle = nb::getattr(stream, attribute, nb::none());
    if (PyLong_Check(handle.ptr())) return nb::cast<uintptr_t>(handle);
  }
  if (nb::hasattr(stream, "__cuda_stream__")) return nb::cast<uintptr_t>(stream.attr("__cuda_stream__")()[1]);
  throw nb::type_error(
      (std::string("stream is a ") + Py_TYPE(stream.ptr())->tp_name + ", want a CUDA stream or its handle").c_str());
}

}  // namespace nsa::metadata::local
