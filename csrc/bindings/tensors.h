// torch's tensors without torch's headers or library: torch.Tensor has a table of C functions for
// DLPack (its "C exchange API", torch 2.10), which tells where a tensor's values are. Asking for
// each property through Python takes ten times as long.
#pragma once

#include <fastrnn/fastrnn.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdint>
#include <initializer_list>

// As in dlpack.h, versions 1.x.
struct DlTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  const int64_t* shape;
  const int64_t* strides;
  uint64_t byte_offset;
};

// The sizes of a tensor of up to four dimensions.
struct Shape {
  static constexpr size_t kMost = 4;
  std::array<int64_t, kMost> sizes = {};
  size_t count;
  Shape(std::initializer_list<int64_t> of) : Shape(of.begin(), of.size()) {}
  explicit Shape(const DlTensor& t) : Shape(t.shape, size_t(t.ndim)) {}

 private:
  Shape(const int64_t* from, size_t n) : count(n) {
    assert(n <= kMost);
    std::copy_n(from, n, sizes.begin());
  }
};

// Remembers which types of tensors have their own memory, where it seems to be, and torch's table.
// Without one of a version that is known read() finds nothing.
void use_tensors(const pybind11::list& types, const pybind11::object& table);

// Whether this is a tensor of one of those types on the CPU, with strides, memory and such numbers.
// It cannot tell that they are negated.
bool read(pybind11::handle object, fastrnn::Dtype dtype, DlTensor& to);

// The address of such a tensor if it has that shape and its values are in order; or null.
void* read_contiguous(pybind11::handle object, fastrnn::Dtype dtype, const Shape& shape);

// Whether a tensor is a lazily negated view (torch.Tensor.is_neg).
bool negated(pybind11::handle tensor);

// A new tensor as tensor.new_empty(*shape) makes it.
pybind11::object new_empty(pybind11::handle tensor, const Shape& shape);
