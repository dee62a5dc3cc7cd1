#include "inputs.h"

#include <array>

#include "../check.h"
#include "tensors.h"

namespace fr = fastrnn;
namespace py = pybind11;

namespace {

using Addresses = std::array<const void*, kWithScales>;

size_t weights_of_one(const fr::Problem& p) {
  return p.dtype == fr::Dtype::kInt8 ? kWithScales : kMatricesAndBiases;
}

constexpr int64_t kVector = -1;  // in place of columns

struct Part {
  int64_t rows, columns;  // rows 0: there is none
  fr::Dtype dtype;

  size_t bytes() const {
    constexpr size_t kBytes[] = {4, 8, 2, 2, 1};
    return size_t(rows * (columns == kVector ? 1 : columns)) * kBytes[int(dtype)];
  }
};

// What Python gives of one direction, in that order.
std::array<Part, kWithScales> parts_of(const fr::Problem& p) {
  const int64_t rows = fr::cell_info(p.cell).gates * p.H, biases = p.bias ? rows : 0;
  const bool quantized = p.dtype == fr::Dtype::kInt8;
  const fr::Dtype vector = value_dtype(p);
  const int64_t scales = quantized ? rows : 0;
  return {{{rows, p.I, p.dtype},
           {rows, output_size(p), p.dtype},
           {biases, kVector, vector},
           {biases, kVector, vector},
           {p.P, p.H, p.dtype},
           {scales, kVector, vector},
           {scales, kVector, vector},
           {quantized ? p.P : 0, kVector, vector}}};
}

fr::Weights weights_at(const Addresses& a) {
  const auto scale = [&](size_t i) { return static_cast<const float*>(a[i]); };
  return {a[0], a[1], a[2], a[3], a[4], scale(5), scale(6), scale(7)};
}

Addresses addresses_of(const fr::Weights& w) {
  return {w.w_ih, w.w_hh, w.b_ih, w.b_hh, w.w_hr, w.scale_ih, w.scale_hh, w.scale_hr};
}

bool has_sizes(const fr::Problem& p, const DlTensor& t, int64_t width, bool batch_first,
               bool step) {
  if (p.ragged) return t.ndim == 2 || t.ndim == 3;
  if (step) return t.ndim == 2 && t.shape[0] == p.B && t.shape[1] == width;
  return t.ndim == 3 && t.shape[batch_first] == p.T && t.shape[!batch_first] == p.B &&
         t.shape[2] == width;
}

}  // namespace

std::vector<fr::Weights> read_weights(const fr::Problem& p, size_t count,
                                      const std::vector<Pointer>& from) {
  const size_t each = weights_of_one(p);
  FASTRNN_CHECK(from.size() == count * each,
                "weights must have " << count * each << " entries, got " << from.size());
  std::vector<fr::Weights> to;
  for (const Pointer* w = from.data(); to.size() < count; w += each) {
    Addresses a = {};
    for (size_t i = 0; i < each; ++i) a[i] = at(w[i]);
    to.push_back(weights_at(a));
  }
  return to;
}

Inputs make_inputs(const fr::Problem& p, Pointer x, int64_t x_step, int64_t x_row, Pointer h0,
                   Pointer c0, const std::vector<Pointer>& weights) {
  Inputs to{at(x), {x_step, x_row}, at(h0), at(c0), {}};
  fr::Weights* own = to.weights;
  for (const fr::Weights& w : read_weights(p, size_t(p.directions), weights)) *own++ = w;
  return to;
}

bool read_rows(const fr::Problem& p, py::handle from, int64_t width, bool batch_first, bool step,
               Rows& to) {
  DlTensor t;
  if (!read(from, value_dtype(p), t) || !has_sizes(p, t, width, batch_first, step)) return false;
  if (negated(from)) return false;
  if (t.strides[t.ndim - 1] != 1 && t.shape[t.ndim - 1] != 1) return false;
  to.data = t.data;
  if (t.ndim == 2)
    to.strides = {0, t.strides[0]};
  else
    to.strides = {t.strides[batch_first], t.strides[!batch_first]};
  return true;
}

bool read_state(const fr::Problem& p, py::handle from, int64_t width, bool step, const void*& to) {
  if (from.is_none()) return true;
  const fr::Dtype dtype = value_dtype(p);
  to = step ? read_contiguous(from, dtype, {p.B, width})
            : read_contiguous(from, dtype, {p.directions, p.B, width});
  return to != nullptr && !negated(from);
}

std::optional<Inputs> read_inputs(const fr::Problem& p, py::handle x, py::handle h0, py::handle c0,
                                  const py::sequence& weights, bool batch_first, bool step) {
  Inputs to;
  const size_t each = weights_of_one(p);
  Rows rows;
  if (weights.size() != each * size_t(p.directions) ||
      !read_rows(p, x, p.I, batch_first, step, rows) ||
      !read_state(p, h0, output_size(p), step, to.h0) || !read_state(p, c0, p.H, step, to.c0))
    return std::nullopt;
  to.x = rows.data, to.x_strides = rows.strides;
  const auto parts = parts_of(p);
  for (size_t d = 0; d < size_t(p.directions); ++d) {
    Addresses a = {};
    for (size_t i = 0; i < each; ++i) {
      const Part& part = parts[i];
      if (part.rows == 0) continue;
      const py::object weight = weights[d * each + i];
      a[i] = part.columns == kVector
                 ? read_contiguous(weight, part.dtype, {part.rows})
                 : read_contiguous(weight, part.dtype, {part.rows, part.columns});
      // Negated views of several numbers have gaps between them, as parts of complex numbers.
      if (!a[i] || (p.H == 1 && negated(weight))) return std::nullopt;
    }
    to.weights[d] = weights_at(a);
  }
  return to;
}

py::bytes fingerprint(const SizedProblem& sized, const Inputs& inputs) {
  std::vector<const void*> addresses;
  std::vector<size_t> bytes;
  const auto parts = parts_of(sized.problem);
  for (size_t d = 0; d < size_t(sized.problem.directions); ++d) {
    const Addresses own = addresses_of(inputs.weights[d]);
    for (size_t i = 0; i < parts.size(); ++i) {
      addresses.push_back(own[i]);
      bytes.push_back(parts[i].bytes());
    }
  }
  constexpr size_t kLong = 1 << 18;  // to wait for the GIL may take longer than to read less
  std::optional<py::gil_scoped_release> unlocked;
  if (sized.sizes.packed > kLong) unlocked.emplace();
  const fr::Fingerprint f = fr::fingerprint(addresses.data(), bytes.data(), bytes.size());
  unlocked.reset();
  return {reinterpret_cast<const char*>(f.words), sizeof f.words};
}
