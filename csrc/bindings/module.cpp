// fastrnn._core: the C++ interface with pointers as integers, of tensors that Python's _ops.py has
// checked. Ordinary ones inputs.cpp reads by itself, and calls.cpp does whole calls of them.
#include <fastrnn/fastrnn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <memory>
#include <optional>

#include "../check.h"
#include "calls.h"
#include "inputs.h"
#include "reservoir.h"
#include "tensors.h"
#include "unlocked.h"

namespace py = pybind11;
namespace fr = fastrnn;

namespace {

fr::Dtype dtype_from_name(const std::string& name) {
  constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16", "int8"};
  for (int i = 0; i < 5; ++i)
    if (name == kNames[i]) return fr::Dtype(i);
  FASTRNN_CHECK(false, "dtype must be float32, float64, bfloat16, float16 or int8, got " << name);
  return fr::Dtype();
}

SizedProblem make_problem(const std::string& cell, const std::string& dtype,
                          const std::string& activation, int64_t T, int64_t B, int64_t I, int64_t H,
                          int64_t P, int directions, bool reverse, bool bias, bool ragged,
                          bool training, int64_t checkpoint_every, int threads, int64_t samples) {
  FASTRNN_CHECK(activation == "tanh" || activation == "relu",
                "activation must be tanh or relu, got " << activation);
  fr::Problem p;
  p.cell = fr::cell_from_name(cell);
  p.dtype = dtype_from_name(dtype);
  p.activation = activation == "relu" ? fr::Activation::kRelu : fr::Activation::kTanh;
  p.T = T, p.B = B, p.I = I, p.H = H, p.P = P;
  p.directions = directions, p.reverse = reverse, p.bias = bias, p.ragged = ragged;
  p.training = training, p.checkpoint_every = checkpoint_every, p.threads = threads;
  p.samples = samples;
  return {p, fr::sizes(p), fr::isa()};
}

using Table = std::array<Pointer, 3>;  // rows, T, B

fr::RowTable read_table(const Table& from) {
  return {static_cast<const int64_t*>(at(from[0])), int64_t(from[1]), int64_t(from[2])};
}

// What forward() and backward() have in common.
template <class Buffers>
Buffers with_inputs(const Inputs& inputs, Pointer offsets, const Table& table) {
  auto b = buffers_with<Buffers>(inputs);
  b.offsets = static_cast<const int64_t*>(at(offsets));
  b.table = read_table(table);
  return b;
}

void forward(const SizedProblem& sized, const Inputs& inputs, Pointer offsets, const Table& table,
             Pointer y, int64_t y_step, int64_t y_row, Pointer h_n, Pointer c_n, Pointer reserve,
             Pointer packed, bool repack, Pointer workspace) {
  auto b = with_inputs<fr::ForwardBuffers>(inputs, offsets, table);
  b.y = at(y), b.y_strides = {y_step, y_row};
  b.h_n = at(h_n), b.c_n = at(c_n), b.reserve = at(reserve);
  b.packed = at(packed), b.repack = repack, b.workspace = at(workspace);
  run_unlocked(b, [&] { return fr::forward(sized.problem, b); });
}

void backward(const SizedProblem& sized, const Inputs& inputs, Pointer offsets, const Table& table,
              Pointer y, int64_t y_step, int64_t y_row, Pointer reserve, Pointer dy,
              int64_t dy_step, int64_t dy_row, Pointer dh_n, Pointer dc_n, Pointer dx,
              int64_t dx_step, int64_t dx_row, Pointer dh0, Pointer dc0,
              const std::vector<Pointer>& dweights, Pointer dgates, Pointer workspace) {
  auto b = with_inputs<fr::BackwardBuffers>(inputs, offsets, table);
  b.y = at(y), b.y_strides = {y_step, y_row};
  b.reserve = at(reserve);
  b.dy = at(dy), b.dy_strides = {dy_step, dy_row};
  b.dh_n = at(dh_n), b.dc_n = at(dc_n);
  b.dx = at(dx), b.dx_strides = {dx_step, dx_row};
  b.dh0 = at(dh0), b.dc0 = at(dc0);
  constexpr size_t each = kMatricesAndBiases;
  const size_t count = each * size_t(sized.problem.directions);
  FASTRNN_CHECK(dweights.size() == count,
                "dweights must have " << count << " entries, got " << dweights.size());
  for (int d = 0; d < sized.problem.directions; ++d) {
    const Pointer* w = dweights.data() + each * size_t(d);
    b.gradients[d] = {at(w[0]), at(w[1]), at(w[2]), at(w[3]), at(w[4])};
  }
  b.dgates = at(dgates);
  b.workspace = at(workspace);
  run_unlocked(b, [&] { return fr::backward(sized.problem, b); });
}

using Ints = py::array_t<int64_t>;
using Bools = py::array_t<bool>;

using StatePointers = std::array<Pointer, 2>;

fr::Problem one_direction(fr::Problem p, bool reverse) {
  p.directions = 1, p.reverse = reverse;
  return p;
}

void second_order(const SizedProblem& sized, bool reverse, Pointer offsets, Pointer w_hh,
                  Pointer wx, Pointer rh, const StatePointers& before, Pointer v_wx, Pointer v_rh,
                  const StatePointers& v_initial, Pointer dgates, Pointer through, Pointer v_before,
                  Pointer v_y, const StatePointers& v_final, Pointer d,
                  const StatePointers& d_initial, Pointer workspace) {
  fr::SecondOrderBuffers b;
  b.offsets = static_cast<const int64_t*>(at(offsets));
  b.w_hh = at(w_hh), b.wx = at(wx), b.rh = at(rh);
  b.v_wx = at(v_wx), b.v_rh = at(v_rh);
  b.dgates = at(dgates), b.through = at(through);
  b.v_before = at(v_before), b.v_y = at(v_y), b.d = at(d);
  for (size_t s = 0; s < before.size(); ++s) {
    b.before[s] = at(before[s]), b.v_initial[s] = at(v_initial[s]);
    b.v_final[s] = at(v_final[s]), b.d_initial[s] = at(d_initial[s]);
  }
  b.workspace = at(workspace);
  run_unlocked(b, [&] { return fr::second_order(one_direction(sized.problem, reverse), b); });
}

// T, B and N of the segments, how many sequences are without any, and the arrays of SegmentBuffers;
// offsets are those of one step at least.
py::tuple segments(int64_t T, int64_t B, const std::optional<Ints>& lengths,
                   const std::optional<Bools>& reset) {
  fr::PaddedBatch batch;
  batch.T = T, batch.B = B;
  if (lengths) {
    FASTRNN_CHECK(lengths->ndim() == 1 && lengths->shape(0) == B &&
                      (B <= 1 || lengths->strides(0) == sizeof(int64_t)),
                  "lengths must be a contiguous array of B = " << B);
    batch.lengths = lengths->data();
  }
  if (reset) {
    FASTRNN_CHECK(reset->ndim() == 2 && reset->shape(0) == T && reset->shape(1) == B,
                  "reset must be an array of T x B = " << T << " x " << B);
    batch.reset = reset->data();
    batch.reset_step = reset->strides(0), batch.reset_row = reset->strides(1);
  }
  const fr::SegmentSizes n = fr::segment_sizes(batch);
  const int64_t steps = std::max<int64_t>(n.T, 1);
  Ints offsets(steps + 1), rows(n.N), owner(n.B), last({int64_t(2), B});
  Bools fresh({int64_t(2), n.B});
  std::fill_n(offsets.mutable_data(), steps + 1, 0);
  bool* const starts = fresh.mutable_data();
  int64_t* const ends = last.mutable_data();
  fr::segments(batch, {offsets.mutable_data(),
                       rows.mutable_data(),
                       owner.mutable_data(),
                       {starts, starts + n.B},
                       {ends, ends + B}});
  return py::make_tuple(steps, n.B, n.N, n.empty, offsets, rows, owner, fresh, last);
}

struct PythonStream : fr::Stream {
  fr::Problem problem;
  int layers;
  PythonStream(const SizedProblem& sized, int count)
      : fr::Stream(sized.problem, count), problem(sized.problem), layers(count) {}
};

void load_stream(PythonStream& stream, const std::vector<Pointer>& from) {
  stream.load(read_weights(stream.problem, size_t(stream.layers), from).data());
}

// A step of a plain tensor x (B, I): y (B, O); or None, and nothing has been done.
py::object step_tensor(PythonStream& stream, py::handle x) {
  const fr::Problem& p = stream.problem;
  const void* from = read_contiguous(x, value_dtype(p), {p.B, p.I});
  if (!from || negated(x)) return py::none();
  const Shape shape = {p.B, output_size(p)};
  py::object y = new_empty(x, shape);
  void* to = read_contiguous(y, value_dtype(p), shape);
  if (!to) return py::none();
  stream.step(from, p.I, to, output_size(p));
  return y;
}

py::bytes fingerprint_of(const std::vector<Pointer>& pointers, const std::vector<size_t>& bytes) {
  FASTRNN_CHECK(pointers.size() == bytes.size(), "pointers and sizes must be equally many");
  std::vector<const void*> buffers;
  buffers.reserve(pointers.size());
  for (const Pointer p : pointers) buffers.push_back(at(p));
  fr::Fingerprint f;
  {
    py::gil_scoped_release unlocked;
    f = fr::fingerprint(buffers.data(), bytes.data(), buffers.size());
  }
  return {reinterpret_cast<const char*>(f.words), sizeof f.words};
}

double read_bandwidth(size_t bytes, double seconds) {
  std::vector<char> buffer(bytes, 1);
  py::gil_scoped_release unlocked;
  return fr::read_bandwidth(buffer.data(), bytes, seconds);
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Compiled kernels; fastrnn._plans is the only importer.";
  m.def("version", &fr::version);
  m.def(
      "advise_large_pages",
      [](Pointer start, size_t bytes) { fr::advise_large_pages(at(start), bytes); },
      py::arg("start"), py::arg("bytes"));
  m.def("isa", &fr::isa);
  m.def("available_isas", &fr::available_isas);
  m.def("set_isa", &fr::set_isa, py::arg("name"));
  m.def("cell_info", [](const std::string& name) {
    const fr::CellInfo info = fr::cell_info(fr::cell_from_name(name));
    py::dict d;
    d["gates"] = info.gates;
    d["states"] = info.states;
    d["saved"] = info.saved;
    d["gradients"] = info.gradients;
    d["state_slots"] = std::vector<int>(info.state_slots, info.state_slots + info.states);
    d["of_input"] = std::vector<int>(info.of_input, info.of_input + info.gates);
    d["of_recurrent"] = std::vector<int>(info.of_recurrent, info.of_recurrent + info.gates);
    return d;
  });
  m.def("use_tensors", &use_tensors);
  m.def("use_threads", [](uintptr_t start, uintptr_t end, uintptr_t within) {
    const fr::ThreadLender lender{reinterpret_cast<decltype(fr::ThreadLender::start)>(start),
                                  reinterpret_cast<decltype(fr::ThreadLender::end)>(end),
                                  reinterpret_cast<decltype(fr::ThreadLender::within)>(within)};
    fr::use_threads(&lender);
  });
  py::class_<Inputs>(m, "Inputs").doc() = "Where the inputs of a call are.";
  py::class_<Layout>(m, "Layout")
      .def(py::init<bool, bool, bool>(), py::arg("x_batch_first"), py::arg("y_batch_first"),
           py::arg("step"));
  py::class_<SizedProblem>(m, "Problem")
      .def(py::init(&make_problem), py::arg("cell"), py::arg("dtype"), py::arg("activation"),
           py::arg("T"), py::arg("B"), py::arg("I"), py::arg("H"), py::arg("P"),
           py::arg("directions"), py::arg("reverse"), py::arg("bias"), py::arg("ragged"),
           py::arg("training"), py::arg("checkpoint_every"), py::arg("threads"),
           py::arg("samples") = 1)
      .def("inputs",
           [](const SizedProblem& p, Pointer x, int64_t x_step, int64_t x_row, Pointer h0,
              Pointer c0, const std::vector<Pointer>& weights) {
             return make_inputs(p.problem, x, x_step, x_row, h0, c0, weights);
           })
      .def("read_inputs",
           [](const SizedProblem& p, py::handle x, py::handle h0, py::handle c0,
              const py::sequence& weights, bool batch_first,
              bool step) { return read_inputs(p.problem, x, h0, c0, weights, batch_first, step); })
      .def("fingerprint", &fingerprint)
      .def("repeat", &repeat)
      .def("ordinary_forward", &ordinary_forward)
      .def("ordinary_backward", &ordinary_backward)
      .def_property_readonly("packed_bytes", [](const SizedProblem& p) { return p.sizes.packed; })
      .def_property_readonly("packs_as_used",
                             [](const SizedProblem& p) { return p.sizes.packs_as_used; })
      .def_property_readonly("workspace_bytes",
                             [](const SizedProblem& p) { return p.sizes.workspace; })
      .def_property_readonly("backward_workspace_bytes",
                             [](const SizedProblem& p) { return p.sizes.backward_workspace; })
      .def_property_readonly("saved", [](const SizedProblem& p) { return p.sizes.saved; });
  // The GIL stays locked in step(): releasing it takes as long as a small step.
  py::class_<PythonStream>(m, "Stream")
      .def(py::init<const SizedProblem&, int>(), py::arg("problem"), py::arg("layers"))
      .def("load", &load_stream)
      .def("step", [](PythonStream& s, Pointer x, int64_t x_row, Pointer y,
                      int64_t y_row) { s.step(at(x), x_row, at(y), y_row); })
      .def("step_tensor", &step_tensor)
      .def("set_state", [](PythonStream& s, Pointer h, Pointer c) { s.set_state(at(h), at(c)); })
      .def("get_state",
           [](const PythonStream& s, Pointer h, Pointer c) { s.get_state(at(h), at(c)); });
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("second_order", &second_order);
  m.def("second_order_workspace", [](const SizedProblem& p, int64_t N) {
    return fr::second_order_workspace(one_direction(p.problem, false), N);
  });
  m.def("segments", &segments, py::arg("T"), py::arg("B"), py::arg("lengths").noconvert(),
        py::arg("reset").noconvert());
  m.def("fingerprint", &fingerprint_of);
  m.def(
      "fma_peak",
      [](double seconds, const std::string& dtype) {
        return fr::fma_peak(dtype_from_name(dtype), seconds);
      },
      py::arg("seconds") = 0.2, py::arg("dtype") = "float32");
  m.def("read_bandwidth", &read_bandwidth, py::arg("bytes"), py::arg("seconds") = 0.1);
  add_reservoir(m);
  // Fail at import, not at the first call, when FASTRNN_ISA names something unsupported.
  fr::isa();
}
