#include "tensors.h"

#include <algorithm>
#include <vector>

namespace py = pybind11;

namespace {

constexpr int32_t kCpu = 1;
constexpr uint32_t kMajorVersion = 1;

struct DlTable {
  uint32_t major, minor;
  DlTable* older;
  void* allocate;
  void* to_managed;
  void* from_managed;
  int (*to_tensor)(void* object, DlTensor* to);  // borrows; 0 if it could, or a Python error is set
  void* current_stream;
};

const DlTable* dl_table = nullptr;
std::vector<py::object>& plain_types() {
  static auto* types = new std::vector<py::object>;  // outlives the interpreter
  return *types;
}

bool is(fastrnn::Dtype dtype, const DlTensor& t) {
  constexpr uint8_t kInt = 0, kFloat = 2, kBfloat = 4;
  constexpr struct {
    uint8_t code, bits;
  } kNumbers[] = {{kFloat, 32}, {kFloat, 64}, {kBfloat, 16}, {kFloat, 16}, {kInt, 8}};
  const auto& wanted = kNumbers[int(dtype)];
  return t.code == wanted.code && t.bits == wanted.bits && t.lanes == 1;
}

}  // namespace

void use_tensors(const py::list& types, const py::object& table) {
  plain_types().clear();
  for (const py::handle type : types)
    plain_types().push_back(py::reinterpret_borrow<py::object>(type));
  dl_table = nullptr;
  if (table.is_none()) return;
  auto* found =
      static_cast<const DlTable*>(PyCapsule_GetPointer(table.ptr(), "dlpack_exchange_api"));
  if (!found) PyErr_Clear();
  while (found && found->major > kMajorVersion) found = found->older;
  if (found && found->major == kMajorVersion && found->to_tensor) dl_table = found;
}

bool read(py::handle object, fastrnn::Dtype dtype, DlTensor& to) {
  const auto& types = plain_types();
  const auto* own = reinterpret_cast<const PyObject*>(Py_TYPE(object.ptr()));
  const auto is_type = [&](const py::object& type) { return type.ptr() == own; };
  if (!dl_table || std::none_of(types.begin(), types.end(), is_type)) return false;
  if (dl_table->to_tensor(object.ptr(), &to) != 0) {
    PyErr_Clear();
    return false;
  }
  if (!to.data || !to.strides || to.device_type != kCpu || !is(dtype, to)) return false;
  to.data = static_cast<char*>(to.data) + to.byte_offset;
  return true;
}

void* read_contiguous(py::handle object, fastrnn::Dtype dtype, const Shape& shape) {
  DlTensor t;
  if (!read(object, dtype, t) || size_t(t.ndim) != shape.count) return nullptr;
  if (!std::equal(t.shape, t.shape + t.ndim, shape.sizes.begin())) return nullptr;
  int64_t stride = 1;
  for (int i = t.ndim - 1; i >= 0; --i) {
    if (t.shape[i] != 1 && t.strides[i] != stride) return nullptr;
    stride *= t.shape[i];
  }
  return t.data;
}

bool negated(py::handle tensor) {
  static PyObject* const name = PyUnicode_InternFromString("is_neg");
  const auto answer =
      py::reinterpret_steal<py::object>(PyObject_CallMethodNoArgs(tensor.ptr(), name));
  if (!answer) throw py::error_already_set();
  return answer.ptr() == Py_True;
}

py::object new_empty(py::handle tensor, const Shape& shape) {
  static PyObject* const name = PyUnicode_InternFromString("new_empty");
  std::array<py::int_, Shape::kMost> sizes;
  std::array<PyObject*, sizes.size() + 1> arguments = {tensor.ptr()};
  for (size_t i = 0; i < shape.count; ++i) {
    sizes[i] = py::int_(shape.sizes[i]);
    arguments[i + 1] = sizes[i].ptr();
  }
  PyObject* made = PyObject_VectorcallMethod(name, arguments.data(), shape.count + 1, nullptr);
  if (!made) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(made);
}
