// The reservoir functions of fastrnn._core, pointers as integers.
#include "reservoir.h"

#include <fastrnn/reservoir.h>
#include <pybind11/stl.h>

#include "../check.h"
#include "unlocked.h"

namespace py = pybind11;
namespace fr = fastrnn::reservoir;

namespace {

using Pointer = uintptr_t;
using Integers = std::vector<int64_t>;

void* at(Pointer p) { return reinterpret_cast<void*>(p); }
void* address(int64_t p) { return reinterpret_cast<void*>(static_cast<uintptr_t>(p)); }

fastrnn::Dtype float_dtype(const std::string& name) {
  FASTRNN_CHECK(name == "float32" || name == "float64",
                "dtype must be float32 or float64, got " << name);
  return name == "float32" ? fastrnn::Dtype::kFloat32 : fastrnn::Dtype::kFloat64;
}

fr::Activation activation_from_name(const std::string& name) {
  constexpr const char* kNames[] = {"tanh", "relu", "identity", "sigmoid"};
  for (int i = 0; i < 4; ++i)
    if (name == kNames[i]) return fr::Activation(i);
  FASTRNN_CHECK(false, "activation must be tanh, relu, identity or sigmoid, got " << name);
  return fr::Activation();
}

fr::Problem make_problem(const std::string& dtype, const std::string& activation, int64_t M,
                         int64_t T, int64_t B, int64_t I, int64_t F, int64_t N, bool reverse,
                         int threads) {
  fr::Problem p;
  p.dtype = float_dtype(dtype), p.activation = activation_from_name(activation);
  p.M = M, p.T = T, p.B = B, p.I = I, p.F = F, p.N = N, p.reverse = reverse, p.threads = threads;
  return p;
}

constexpr size_t kMatrix = 6, kWeights = 4 + 2 * kMatrix;

fr::Matrix read_matrix(const int64_t* v) {
  FASTRNN_CHECK(v[0] >= 0 && v[0] <= 4, "layout must be in [0, 4], got " << v[0]);
  fr::Matrix m;
  m.layout = fr::Layout(v[0]), m.weights = address(v[1]), m.columns = address(v[2]);
  m.rows = static_cast<const int64_t*>(address(v[3])), m.K = v[4], m.wide = v[5] != 0;
  return m;
}

fr::Weights read_weights(const Integers& v) {
  FASTRNN_CHECK(v.size() == kWeights,
                "weights must have " << kWeights << " entries, got " << v.size());
  fr::Weights w;
  w.w_ih = address(v[0]), w.w_fb = address(v[1]), w.bias = address(v[2]), w.leak = address(v[3]);
  w.recurrent = read_matrix(v.data() + 4), w.carry = read_matrix(v.data() + 4 + kMatrix);
  return w;
}

fr::Strides read_strides(const Integers& v) {
  FASTRNN_CHECK(v.size() == 3, "strides must have 3 entries, got " << v.size());
  return {v[0], v[1], v[2]};
}

void forward(const fr::Problem& p, const Integers& weights, Pointer x, const Integers& x_strides,
             Pointer feedback, const Integers& feedback_strides, Pointer noise, Pointer lengths,
             Pointer h0, Pointer y, const Integers& y_strides, Pointer h_n, Pointer activated,
             Pointer workspace) {
  fr::ForwardBuffers b;
  b.weights = read_weights(weights);
  b.x = at(x), b.x_strides = read_strides(x_strides);
  b.feedback = at(feedback), b.feedback_strides = read_strides(feedback_strides);
  b.noise = at(noise), b.lengths = static_cast<const int64_t*>(at(lengths)), b.h0 = at(h0);
  b.y = at(y), b.y_strides = read_strides(y_strides), b.h_n = at(h_n);
  b.activated = at(activated), b.workspace = at(workspace);
  run_unlocked(b, [&] { return fr::forward(p, b); });
}

void backward(const fr::Problem& p, const Integers& weights, Pointer lengths, Pointer activated,
              Pointer dy, const Integers& dy_strides, Pointer dh_n, Pointer dx,
              const Integers& dx_strides, Pointer dfeedback, const Integers& dfeedback_strides,
              Pointer dh0, Pointer workspace) {
  fr::BackwardBuffers b;
  b.weights = read_weights(weights);
  b.lengths = static_cast<const int64_t*>(at(lengths)), b.activated = at(activated);
  b.dy = at(dy), b.dy_strides = read_strides(dy_strides), b.dh_n = at(dh_n);
  b.dx = at(dx), b.dx_strides = read_strides(dx_strides);
  b.dfeedback = at(dfeedback), b.dfeedback_strides = read_strides(dfeedback_strides);
  b.dh0 = at(dh0), b.workspace = at(workspace);
  run_unlocked(b, [&] { return fr::backward(p, b); });
}

struct SizedForecast {
  fr::Forecast forecast;
  size_t bytes;
};

SizedForecast make_forecast(const fr::Problem& p, int layers, int64_t O, bool square,
                            bool sees_input, bool ring) {
  const fr::Forecast f = {p, layers, O, square, sees_input, ring};
  return {f, fr::workspace_bytes(f)};
}

void forecast(const SizedForecast& sized, const std::vector<Integers>& weights, Pointer w_out,
              Pointer b_out, Pointer reads, Pointer drivers, const Integers& drivers_strides,
              Pointer u, Pointer state, Pointer out, const Integers& out_strides,
              Pointer workspace) {
  FASTRNN_CHECK(
      int(weights.size()) == sized.forecast.layers,
      "weights must be those of " << sized.forecast.layers << " layers, got " << weights.size());
  fr::ForecastBuffers b;
  for (size_t i = 0; i < weights.size(); ++i) b.weights[i] = read_weights(weights[i]);
  b.w_out = static_cast<const double*>(at(w_out));
  b.b_out = static_cast<const double*>(at(b_out));
  b.reads = static_cast<const int64_t*>(at(reads));
  b.drivers = at(drivers), b.drivers_strides = read_strides(drivers_strides);
  b.u = at(u), b.state = at(state);
  b.out = static_cast<double*>(at(out)), b.out_strides = read_strides(out_strides);
  b.workspace = at(workspace);
  run_unlocked(b, [&] { return fr::forecast(sized.forecast, b); });
}

struct SizedPolynomial {
  fr::Polynomial polynomial;
  size_t bytes;
};

SizedPolynomial make_polynomial(const std::string& dtype, int64_t T, int64_t B, int64_t I,
                                int64_t O, int64_t delays, int64_t skip, int64_t order,
                                int64_t features, bool square, bool sees_input, int threads) {
  const fr::Polynomial p = {float_dtype(dtype), T,      B,          I,      O, delays, skip, order,
                            features,           square, sees_input, threads};
  return {p, fr::workspace_bytes(p)};
}

void polynomial_forecast(const SizedPolynomial& sized, Pointer monomials, Pointer w_out,
                         Pointer b_out, Pointer drivers, const Integers& drivers_strides,
                         Pointer window, Pointer out, const Integers& out_strides,
                         Pointer workspace) {
  fr::PolynomialBuffers b;
  b.monomials = static_cast<const int64_t*>(at(monomials));
  b.w_out = static_cast<const double*>(at(w_out));
  b.b_out = static_cast<const double*>(at(b_out));
  b.drivers = at(drivers), b.drivers_strides = read_strides(drivers_strides);
  b.window = at(window);
  b.out = static_cast<double*>(at(out)), b.out_strides = read_strides(out_strides);
  b.workspace = at(workspace);
  run_unlocked(b, [&] { return fr::forecast(sized.polynomial, b); });
}

struct SizedGram {
  fr::Gram gram;
  size_t bytes;
};

SizedGram make_gram(const std::string& states, const std::string& targets, int64_t n, int64_t N,
                    int64_t O, int threads) {
  const fr::Gram g = {float_dtype(states), float_dtype(targets), n, N, O, threads};
  return {g, fr::workspace_bytes(g)};
}

void accumulate(const SizedGram& sized, Pointer states, int64_t states_row, Pointer targets,
                int64_t targets_row, Pointer shift, Pointer target_shift, Pointer row_weights,
                Pointer gram, Pointer cross, Pointer sums, Pointer workspace) {
  const auto doubles = [](Pointer p) { return static_cast<double*>(at(p)); };
  fr::GramBuffers b;
  b.states = at(states), b.states_row = states_row;
  b.targets = at(targets), b.targets_row = targets_row;
  b.shift = doubles(shift), b.target_shift = doubles(target_shift);
  b.row_weights = doubles(row_weights);
  b.gram = doubles(gram), b.cross = doubles(cross), b.sums = doubles(sums);
  b.workspace = at(workspace);
  run_unlocked(b, [&] { return fr::accumulate(sized.gram, b); });
}

}  // namespace

void add_reservoir(py::module_& m) {
  py::class_<fr::Problem>(m, "ReservoirProblem")
      .def(py::init(&make_problem), py::arg("dtype"), py::arg("activation"), py::arg("M"),
           py::arg("T"), py::arg("B"), py::arg("I"), py::arg("F"), py::arg("N"), py::arg("reverse"),
           py::arg("threads"))
      .def_property_readonly("workspace_bytes",
                             [](const fr::Problem& p) { return fr::workspace_bytes(p); });
  py::class_<SizedForecast>(m, "ReservoirForecast")
      .def(py::init(&make_forecast), py::arg("problem"), py::arg("layers"), py::arg("O"),
           py::arg("square"), py::arg("sees_input"), py::arg("ring"))
      .def_readonly("workspace_bytes", &SizedForecast::bytes);
  py::class_<SizedPolynomial>(m, "Polynomial")
      .def(py::init(&make_polynomial), py::arg("dtype"), py::arg("T"), py::arg("B"), py::arg("I"),
           py::arg("O"), py::arg("delays"), py::arg("skip"), py::arg("order"), py::arg("features"),
           py::arg("square"), py::arg("sees_input"), py::arg("threads"))
      .def_readonly("workspace_bytes", &SizedPolynomial::bytes);
  py::class_<SizedGram>(m, "Gram")
      .def(py::init(&make_gram), py::arg("states"), py::arg("targets"), py::arg("n"), py::arg("N"),
           py::arg("O"), py::arg("threads"))
      .def_readonly("workspace_bytes", &SizedGram::bytes);
  m.def("reservoir_forward", &forward);
  m.def("reservoir_backward", &backward);
  m.def("reservoir_forecast", &forecast);
  m.def("polynomial_forecast", &polynomial_forecast);
  m.def("gram_accumulate", &accumulate);
}
