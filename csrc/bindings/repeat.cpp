#include "repeat.h"

#include "tensors.h"
#include "unlocked.h"

namespace fr = fastrnn;
namespace py = pybind11;

namespace {

// y, or a state: a new tensor whose address goes to `at`; not a Tensor where a mode makes others.
py::object output(const fr::Problem& p, py::handle x, std::initializer_list<int64_t> shape,
                  void*& at) {
  py::object made = new_empty(x, shape);
  at = read_contiguous(made, value_dtype(p), shape);
  return made;
}

py::object output_y(const fr::Problem& p, const Layout& layout, py::handle x,
                    fr::ForwardBuffers& b) {
  const int64_t width = p.directions * (p.P ? p.P : p.H);
  if (layout.step) {
    b.y_strides = {0, width};
    return output(p, x, {p.B, width}, b.y);
  }
  if (layout.y_batch_first) {
    b.y_strides = {width, p.T * width};
    return output(p, x, {p.B, p.T, width}, b.y);
  }
  b.y_strides = {p.B * width, width};
  return output(p, x, {p.T, p.B, width}, b.y);
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
  b.packed = at(packed), b.workspace = at(workspace), b.h_n = at(h_n);
  py::object y = output_y(p, layout, x, b), last_h = py::none(), last_c = py::none();
  if (!layout.step) last_h = output_state(p, layout, x, p.P ? p.P : p.H, out, 0, b.h_n);
  const bool two_states = fr::cell_info(p.cell).states > 1;
  if (two_states) last_c = output_state(p, layout, x, p.H, out, 1, b.c_n);
  if (!b.y || !b.h_n || (two_states && !b.c_n)) return py::none();
  run_unlocked(b, [&] { return fr::forward(p, b); });
  return py::make_tuple(y, last_h, last_c);
}
