#include "calls.h"

#include <array>
#include <utility>
#include <vector>

#include "tensors.h"
#include "unlocked.h"

namespace fr = fastrnn;
namespace py = pybind11;

namespace {

// y, a state or a gradient: a new tensor, and its address; null where a mode makes something else.
py::object output(const fr::Problem& p, py::handle x, const Shape& shape, void*& at) {
  py::object made = new_empty(x, shape);
  at = read_contiguous(made, value_dtype(p), shape);
  return made;
}

// Between the steps and the rows of a new tensor.
fr::Strides strides_of(const fr::Problem& p, int64_t width, bool batch_first, bool step) {
  if (step) return {0, width};
  return batch_first ? fr::Strides{width, p.T * width} : fr::Strides{p.B * width, width};
}

py::object output_y(const fr::Problem& p, const Layout& layout, py::handle x, void*& at) {
  const int64_t width = p.directions * output_size(p);
  if (layout.step) return output(p, x, {p.B, width}, at);
  return layout.y_batch_first ? output(p, x, {p.B, p.T, width}, at)
                              : output(p, x, {p.T, p.B, width}, at);
}

// A final state: what `out` has at `index`, or a new tensor.
py::object output_state(const fr::Problem& p, const Layout& layout, py::handle x, int64_t width,
                        py::handle out, size_t index, void*& at) {
  if (!out.is_none()) {
    py::object given = py::reinterpret_borrow<py::sequence>(out)[index];
    at = read_contiguous(given, value_dtype(p), {p.directions, p.B, width});
    return given;
  }
  return layout.step ? output(p, x, {p.B, width}, at)
                     : output(p, x, {p.directions, p.B, width}, at);
}

// What forward() gives back.
struct Outputs {
  py::object y, h_n = py::none(), c_n = py::none();
};

// New outputs, or those states that are in `out`, for `b`; false where a mode makes something else.
bool make_outputs(const fr::Problem& p, const Layout& layout, py::handle x, py::handle out,
                  fr::ForwardBuffers& b, Outputs& made) {
  made.y = output_y(p, layout, x, b.y);
  b.y_strides = strides_of(p, p.directions * output_size(p), layout.y_batch_first, layout.step);
  if (!layout.step) made.h_n = output_state(p, layout, x, output_size(p), out, 0, b.h_n);
  const bool two_states = fr::cell_info(p.cell).states > 1;
  if (two_states) made.c_n = output_state(p, layout, x, p.H, out, 1, b.c_n);
  return b.y && b.h_n && (b.c_n || !two_states);
}

Shape reserve_shape(const SizedProblem& sized) {
  const fr::Problem& p = sized.problem;
  const int64_t K = p.checkpoint_every, steps = K ? (p.T - 1) / K + 1 : p.T;
  return {p.directions, steps * p.B, sized.sizes.saved, p.H};
}

// What forward() kept: there may be nothing to keep.
bool read_reserve(const SizedProblem& sized, py::handle from, const void*& to) {
  if (sized.sizes.saved == 0) return from.is_none();
  const bool wide = sized.problem.dtype == fr::Dtype::kFloat64;
  to =
      read_contiguous(from, wide ? fr::Dtype::kFloat64 : fr::Dtype::kFloat32, reserve_shape(sized));
  return to != nullptr && !negated(from);
}

// New gradients of those that are wanted, in the order of `wanted`.
class Gradients {
 public:
  Gradients(const fr::Problem& p, const py::sequence& wanted)
      : p_(p), wanted_(wanted), made_(wanted.size()) {}

  // The address of a gradient of the next tensor: null if it is not wanted.
  void* add(py::handle of) {
    py::object& made = made_[next_];
    made = py::none();
    if (!wanted_[next_++].cast<bool>() || of.is_none()) return nullptr;
    DlTensor t;
    void* at = nullptr;
    if (read(of, p_.dtype, t) && size_t(t.ndim) <= Shape::kMost)
      made = output(p_, of, Shape(t), at);
    complete_ = complete_ && at;
    return at;
  }
  bool complete() const { return complete_; }  // all that are wanted have been made
  py::tuple take() {
    py::tuple all(made_.size());
    for (size_t i = 0; i < made_.size(); ++i) all[i] = std::move(made_[i]);
    return all;
  }

 private:
  const fr::Problem& p_;
  const py::sequence& wanted_;
  std::vector<py::object> made_;
  size_t next_ = 0;
  bool complete_ = true;
};

}  // namespace

py::object repeat(const SizedProblem& sized, const Layout& layout, py::handle x, py::handle h0,
                  py::handle c0, const py::sequence& weights, py::handle content, py::handle out,
                  Pointer packed, Pointer workspace, Pointer h_n) {
  const fr::Problem& p = sized.problem;
  if (sized.isa != fr::isa()) return py::none();
  const auto inputs = read_inputs(p, x, h0, c0, weights, layout.x_batch_first, layout.step);
  if (!inputs) return py::none();
  if (!content.is_none() && !fingerprint(sized, *inputs).equal(content)) return py::none();

  auto b = buffers_with<fr::ForwardBuffers>(*inputs);
  b.packed = at(packed), b.repack = false, b.workspace = at(workspace), b.h_n = at(h_n);
  Outputs made;
  if (!make_outputs(p, layout, x, out, b, made)) return py::none();
  run_unlocked(b, [&] { return fr::forward(p, b); });
  return py::make_tuple(made.y, made.h_n, made.c_n);
}

py::object ordinary_forward(const SizedProblem& sized, const Layout& layout, py::handle x,
                            py::handle h0, py::handle c0, const py::sequence& weights,
                            Pointer packed, Pointer workspace, Pointer h_n) {
  const fr::Problem& p = sized.problem;
  // What is kept of fewer bits are values in float32, which no tensor here is like.
  if (p.dtype != fr::Dtype::kFloat32 && p.dtype != fr::Dtype::kFloat64) return py::none();
  if (sized.isa != fr::isa()) return py::none();
  const auto inputs = read_inputs(p, x, h0, c0, weights, layout.x_batch_first, layout.step);
  if (!inputs) return py::none();
  auto b = buffers_with<fr::ForwardBuffers>(*inputs);
  b.packed = at(packed), b.workspace = at(workspace), b.h_n = at(h_n);
  Outputs made;
  py::object reserve = py::none();
  if (!make_outputs(p, layout, x, py::none(), b, made)) return py::none();
  if (sized.sizes.saved > 0) {
    reserve = output(p, x, reserve_shape(sized), b.reserve);
    if (!b.reserve) return py::none();
  }
  run_unlocked(b, [&] { return fr::forward(p, b); });
  return py::make_tuple(made.y, made.h_n, made.c_n, reserve);
}

py::object ordinary_backward(const SizedProblem& sized, const Layout& layout, py::handle x,
                             py::handle h0, py::handle c0, const py::sequence& weights,
                             const py::sequence& wanted, py::handle dy, py::handle dh_n,
                             py::handle dc_n, py::handle y, py::handle reserve, Pointer workspace) {
  const fr::Problem& p = sized.problem;
  const int64_t width = p.directions * output_size(p);
  const bool step = layout.step;
  const auto inputs = read_inputs(p, x, h0, c0, weights, layout.x_batch_first, step);
  if (!inputs || wanted.size() != 3 + weights.size()) return py::none();
  auto b = buffers_with<fr::BackwardBuffers>(*inputs);
  Rows rows, gradient_rows;
  if (!read_rows(p, y, width, layout.y_batch_first, step, rows) ||
      (!dy.is_none() && !read_rows(p, dy, width, layout.y_batch_first, step, gradient_rows)) ||
      !read_state(p, dh_n, output_size(p), step, b.dh_n) ||
      !read_state(p, dc_n, p.H, step, b.dc_n) || !read_reserve(sized, reserve, b.reserve))
    return py::none();
  b.y = rows.data, b.y_strides = rows.strides;
  b.dy = gradient_rows.data, b.dy_strides = gradient_rows.strides;

  Gradients gradients(p, wanted);
  b.dx = gradients.add(x), b.dh0 = gradients.add(h0), b.dc0 = gradients.add(c0);
  b.dx_strides = strides_of(p, p.I, layout.x_batch_first, step);
  for (int d = 0; d < p.directions; ++d) {
    std::array<void*, kMatricesAndBiases> to;
    for (size_t i = 0; i < to.size(); ++i)
      to[i] = gradients.add(weights[size_t(d) * to.size() + i]);
    b.gradients[d] = {to[0], to[1], to[2], to[3], to[4]};
  }
  if (!gradients.complete()) return py::none();
  b.workspace = at(workspace);
  run_unlocked(b, [&] { return fr::backward(p, b); });
  return gradients.take();
}
