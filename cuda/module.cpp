// fastrnn._cuda: api.h with pointers as integers; Python's _cuda_ops.py checks tensors, nothing
// here knows them. Compiled more than once: with the kernels, with the emulated kernels for tests,
// and, where there is no nvcc, with nothing but the planner (FASTRNN_PLANS_ONLY).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "api.h"
#include "cells/list.h"
#include "check.h"

namespace py = pybind11;
namespace fr = fastrnn;
namespace gpu = fastrnn::cuda;

namespace {

fr::Cell cell_named(const std::string& given) {
#define FASTRNN_NAMED(type, enumerator, name) \
  if (given == name) return fr::enumerator;
  FASTRNN_CELLS(FASTRNN_NAMED)
#undef FASTRNN_NAMED
  FASTRNN_CHECK(false, "cell must be one of those that the engine has, got " << given);
  return fr::Cell();
}

fr::Dtype dtype_named(const std::string& name) {
  constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};
  for (int i = 0; i < 4; ++i)
    if (name == kNames[i]) return fr::Dtype(i);
  FASTRNN_CHECK(false, "dtype must be float32, float64, bfloat16 or float16, got " << name);
  return fr::Dtype();
}

fr::Problem make_problem(const std::string& cell, const std::string& dtype,
                         const std::string& activation, int64_t T, int64_t B, int64_t H, int64_t P,
                         int directions, bool ragged, bool training) {
  FASTRNN_CHECK(activation == "tanh" || activation == "relu",
                "activation must be tanh or relu, got " << activation);
  fr::Problem p;
  p.cell = cell_named(cell), p.dtype = dtype_named(dtype);
  p.activation = activation == "relu" ? fr::Activation::kRelu : fr::Activation::kTanh;
  p.T = T, p.B = B, p.H = H, p.P = P;
  p.directions = directions, p.ragged = ragged, p.training = training;
  return p;
}

const char* kernel_name(gpu::Kernel kernel) {
  constexpr const char* kNames[] = {"step", "persistent", "stream"};
  return kNames[static_cast<int>(kernel)];
}

gpu::Plan make_plan(const fr::Problem& problem, const gpu::Device& device, bool backward, bool tf32,
                    const std::string& kernel) {
  if (kernel.empty()) return gpu::plan(problem, device, backward, tf32);
  for (const gpu::Kernel one : {gpu::Kernel::kStep, gpu::Kernel::kPersistent})
    if (kernel == kernel_name(one)) return gpu::plan(problem, device, backward, tf32, one);
  FASTRNN_CHECK(false, "kernel must be step or persistent, or empty, got " << kernel);
  return {};
}

py::dict layout(const std::string& cell) {
  const gpu::Layout found = gpu::layout(cell_named(cell));
  py::dict d;
  d["gates"] = found.gates, d["states"] = found.states, d["gradients"] = found.gradients;
  d["saved"] = found.saved;
  d["input"] = std::vector<int>(found.input, found.input + found.gates);
  d["recurrent"] = std::vector<int>(found.recurrent, found.recurrent + found.gates);
  return d;
}

#ifndef FASTRNN_PLANS_ONLY

using Pointer = uintptr_t;
using Pair = std::array<Pointer, 2>;  // of each direction

template <class T = void>
T* at(Pointer p) {
  return reinterpret_cast<T*>(p);
}
template <class To>
void read(const Pair& from, To* (&to)[2]) {
  for (size_t d = 0; d < from.size(); ++d) to[d] = at(from[d]);
}

void forward(const fr::Problem& problem, const gpu::Plan& plan, const Pair& wx, int64_t wx_step,
             int64_t wx_row, Pointer offsets, Pointer h0, Pointer c0, const Pair& w_hh,
             const Pair& b_hh, const Pair& w_hr, Pointer y, int64_t y_step, int64_t y_row,
             Pointer h_n, Pointer c_n, Pointer reserve, Pointer workspace, Pointer stream) {
  gpu::ForwardBuffers b;
  read(wx, b.wx), b.wx_strides = {wx_step, wx_row};
  b.offsets = at<const int64_t>(offsets);
  b.h0 = at(h0), b.c0 = at(c0);
  read(w_hh, b.w_hh), read(b_hh, b.b_hh), read(w_hr, b.w_hr);
  b.y = at(y), b.y_strides = {y_step, y_row};
  b.h_n = at(h_n), b.c_n = at(c_n);
  b.reserve = at(reserve), b.workspace = at(workspace);
  gpu::forward(problem, plan, b, at(stream));
}

void backward(const fr::Problem& problem, const gpu::Plan& plan, Pointer offsets, Pointer h0,
              Pointer c0, const Pair& w_hh, const Pair& w_hr, Pointer y, int64_t y_step,
              int64_t y_row, Pointer reserve, Pointer dy, int64_t dy_step, int64_t dy_row,
              Pointer dh_n, Pointer dc_n, const Pair& dgates, const Pair& dprojected, Pointer dh0,
              Pointer dc0, Pointer workspace, Pointer stream) {
  gpu::BackwardBuffers b;
  b.offsets = at<const int64_t>(offsets);
  b.h0 = at(h0), b.c0 = at(c0);
  read(w_hh, b.w_hh), read(w_hr, b.w_hr);
  b.y = at(y), b.y_strides = {y_step, y_row};
  b.reserve = at(reserve);
  b.dy = at(dy), b.dy_strides = {dy_step, dy_row};
  b.dh_n = at(dh_n), b.dc_n = at(dc_n);
  read(dgates, b.dgates), read(dprojected, b.dprojected);
  b.dh0 = at(dh0), b.dc0 = at(dc0), b.workspace = at(workspace);
  gpu::backward(problem, plan, b, at(stream));
}

// Steps through a stack of layers. Weights and state stay the caller's.
class Stream {
 public:
  Stream(const fr::Problem& problem, int64_t inputs, int layers, const gpu::Device& device,
         bool tf32)
      : problem_(problem), weights_(static_cast<size_t>(layers > 0 ? layers : 0)) {
    problem_.I = inputs;
    plan_ = gpu::stream_plan(problem_, layers, device, tf32);
  }
  const gpu::Plan& plan() const { return plan_; }
  size_t bytes() const { return gpu::stream_bytes(problem_, plan_); }

  void load(const std::vector<std::array<Pointer, 5>>& weights) {
    FASTRNN_CHECK(weights.size() == weights_.size(), "weights must be those of every layer");
    for (size_t l = 0; l < weights.size(); ++l) {
      fr::Weights& to = weights_[l];
      to.w_ih = at(weights[l][0]), to.w_hh = at(weights[l][1]), to.b_ih = at(weights[l][2]);
      to.b_hh = at(weights[l][3]), to.w_hr = at(weights[l][4]);
    }
  }
  void step(Pointer x, int64_t x_row, Pointer y, int64_t y_row, Pointer state,
            Pointer stream) const {
    gpu::stream_step(problem_, plan_, {weights_.data(), at(x), x_row, at(y), y_row, at(state)},
                     at(stream));
  }
  void set_state(Pointer state, Pointer h, Pointer c, Pointer stream) const {
    gpu::stream_set_state(problem_, plan_, at(state), at(h), at(c), at(stream));
  }
  void get_state(Pointer state, Pointer h, Pointer c, Pointer stream) const {
    gpu::stream_get_state(problem_, plan_, at(state), at(h), at(c), at(stream));
  }

 private:
  fr::Problem problem_;
  gpu::Plan plan_;
  std::vector<fr::Weights> weights_;
};

void add_stream(py::module_& m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<Stream>(m, "Stream", py::module_local())
      .def(py::init<const fr::Problem&, int64_t, int, const gpu::Device&, bool>())
      .def_property_readonly("plan", &Stream::plan)
      .def_property_readonly("bytes", &Stream::bytes)
      .def("load", &Stream::load)
      .def("step", &Stream::step, Unlocked())
      .def("set_state", &Stream::set_state, Unlocked())
      .def("get_state", &Stream::get_state, Unlocked());
}

void add_kernels(py::module_& m) {
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  m.def("versions", [] {
    const gpu::Versions v = gpu::versions();
    return py::make_tuple(v.driver, v.own);
  });
  m.def("device_properties", &gpu::device_properties, Unlocked());
  m.def("forward", &forward, Unlocked());
  m.def("backward", &backward, Unlocked());
  add_stream(m);
}

constexpr bool kHasKernels = true;
#else
void add_kernels(py::module_&) {}
constexpr bool kHasKernels = false;
#endif

// py::module_local: the emulated module has the same classes, in the same process.
void add_device(py::module_& m) {
  using gpu::Device;
  py::class_<Device>(m, "Device", py::module_local())
      .def_readonly("major", &Device::major)
      .def_readonly("minor", &Device::minor)
      .def_readonly("multiprocessors", &Device::multiprocessors)
      .def_readonly("shared_per_block", &Device::shared_per_block)
      .def_readonly("shared_per_multiprocessor", &Device::shared_per_multiprocessor)
      .def_readonly("threads_per_multiprocessor", &Device::threads_per_multiprocessor)
      .def_readonly("clock_ghz", &Device::clock_ghz)
      .def_readonly("l2_gb_per_s", &Device::l2_gb_per_s)
      .def_readonly("barrier_us", &Device::barrier_us)
      .def_readonly("launch_us", &Device::launch_us);
  m.def("device_named", [](const std::string& name) { return gpu::device_named(name.c_str()); });
}

void add_plan(py::module_& m) {
  using gpu::Plan;
  py::class_<Plan>(m, "Plan", py::module_local())
      .def_property_readonly("kernel", [](const Plan& p) { return kernel_name(p.kernel); })
      .def_readonly("backward", &Plan::backward)
      .def_readonly("tf32", &Plan::tf32)
      .def_readonly("units", &Plan::units)
      .def_readonly("rows", &Plan::rows)
      .def_readonly("unit_blocks", &Plan::unit_blocks)
      .def_readonly("row_blocks", &Plan::row_blocks)
      .def_readonly("layers", &Plan::layers)
      .def_readonly("splits", &Plan::splits)
      .def_readonly("threads", &Plan::threads)
      .def_readonly("blocks", &Plan::blocks)
      .def_readonly("blocks_per_multiprocessor", &Plan::blocks_per_multiprocessor)
      .def_readonly("shared_bytes", &Plan::shared_bytes)
      .def_readonly("weight_bytes", &Plan::weight_bytes)
      .def_readonly("register_bytes", &Plan::register_bytes)
      .def_readonly("broadcast_bytes", &Plan::broadcast_bytes)
      .def_readonly("product_us", &Plan::product_us)
      .def_readonly("broadcast_us", &Plan::broadcast_us)
      .def_readonly("wait_us", &Plan::wait_us)
      .def_readonly("step_us", &Plan::step_us);
  m.def("plan", &make_plan, py::arg("problem"), py::arg("device"), py::arg("backward"),
        py::arg("tf32"), py::arg("kernel") = "");
}

}  // namespace

PYBIND11_MODULE(FASTRNN_CUDA_MODULE, m) {
  m.doc() = "The CUDA engine; fastrnn._cuda_ops is the only user.";
  m.attr("has_kernels") = kHasKernels;
  py::class_<fr::Problem>(m, "Problem", py::module_local())
      .def(py::init(&make_problem), py::arg("cell"), py::arg("dtype"), py::arg("activation"),
           py::arg("T"), py::arg("B"), py::arg("H"), py::arg("P"), py::arg("directions"),
           py::arg("ragged"), py::arg("training"));
  add_device(m);
  add_plan(m);
  m.def("layout", &layout);
  m.def("workspace_bytes", [](const fr::Problem& problem, const gpu::Plan& plan) {
    return gpu::sizes(problem, plan).workspace;
  });
  add_kernels(m);
}
