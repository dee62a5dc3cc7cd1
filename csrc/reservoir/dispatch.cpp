// From a reservoir problem to its kernel: checks, then dtype -> ISA.
#include "../check.h"
#include "../cpu/isa.h"
#include "../cpu/kernels.h"
#include "../cpu/threads.h"
#include "kernels.h"

namespace fastrnn::reservoir {
namespace {

constexpr int64_t kMost = int64_t(1) << 31;  // of any size: products of two then fit

void check_float(Dtype dtype, const char* name) {
  FASTRNN_CHECK(dtype == Dtype::kFloat32 || dtype == Dtype::kFloat64,
                name << " must be float32 or float64");
}

void check_size(const char* name, int64_t size, int64_t least) {
  FASTRNN_CHECK(size >= least && size < kMost,
                name << " must be in [" << least << ", 2^31), got " << size);
}

void check_threads(int threads) {
  FASTRNN_CHECK(threads >= 1 && threads <= kMaxThreads,
                "threads must be in [1, " << kMaxThreads << "], got " << threads);
}

void check_problem(const Problem& p) {
  check_float(p.dtype, "dtype");
  check_size("M", p.M, 1), check_size("T", p.T, 0), check_size("B", p.B, 0);
  check_size("I", p.I, 0), check_size("F", p.F, 0), check_size("N", p.N, 1);
  check_threads(p.threads);
}

void check_matrix(const Problem& p, const Matrix& m, const char* name) {
  if (m.layout == Layout::kNone) return;
  const bool sparse = m.layout == Layout::kStrips || m.layout == Layout::kRows;
  FASTRNN_CHECK(m.layout != Layout::kStrips || m.K >= 0, name << ": K must not be negative");
  FASTRNN_CHECK((m.layout != Layout::kRows && m.layout != Layout::kWindows) || m.rows,
                name << ": rows must be given");
  FASTRNN_CHECK(!sparse || m.wide || p.N <= 65536, name << ": columns must be wide, N = " << p.N);
}

void check_weights(const Problem& p, const Weights& w) {
  FASTRNN_CHECK(w.w_ih || p.I == 0, "w_ih must be given");
  FASTRNN_CHECK(w.w_fb || p.F == 0, "w_fb must be given");
  FASTRNN_CHECK(w.leak, "leak must be given");
  check_matrix(p, w.recurrent, "recurrent");
  check_matrix(p, w.carry, "carry");
}

const Kernels& kernels() { return *current_isa().kernels().reservoir; }
const RunKernels& kernels_for(const Problem& p) { return kernels().run[int(p.dtype)]; }

void check_lengths(const Problem& p, const int64_t* lengths) {
  for (int64_t b = 0; lengths && b < p.B; ++b)
    FASTRNN_CHECK(lengths[b] >= 0 && lengths[b] <= p.T,
                  "lengths must be in [0, T] = [0, " << p.T << "], got " << lengths[b]);
}

void check_forecast(const Forecast& f) {
  const Problem& p = f.problem;
  check_problem(p);
  check_size("O", f.O, 1);
  FASTRNN_CHECK(f.layers >= 1 && f.layers <= kMaxLayers,
                "layers must be in [1, " << kMaxLayers << "], got " << f.layers);
  if (f.ring)
    FASTRNN_CHECK(p.F == 0, "F must be 0 for a ring, got " << p.F);
  else
    FASTRNN_CHECK(
        p.F ? p.F == f.O : p.I >= f.O,
        "O must be F, or with F = 0 at most I: O, F, I are " << f.O << ", " << p.F << ", " << p.I);
}

void check_reads(const Forecast& f, const int64_t* reads) {
  const Problem& p = f.problem;
  FASTRNN_CHECK(reads || p.I == 0, "reads must be given for a ring");
  for (int64_t k = 0; k < p.M * p.I; ++k)
    FASTRNN_CHECK(reads[k] >= 0 && reads[k] < f.O,
                  "reads must be in [0, O) = [0, " << f.O << "), got " << reads[k]);
}

void check_polynomial(const Polynomial& p) {
  check_float(p.dtype, "dtype");
  check_size("T", p.T, 0), check_size("B", p.B, 0), check_size("I", p.I, 1);
  check_size("O", p.O, 1), check_size("delays", p.delays, 1), check_size("skip", p.skip, 1);
  check_size("order", p.order, 1), check_size("features", p.features, 1);
  check_threads(p.threads);
  FASTRNN_CHECK(p.O <= p.I, "O must be at most I = " << p.I << ", got " << p.O);
}

}  // namespace

size_t workspace_bytes(const Problem& problem) {
  check_problem(problem);
  return kernels_for(problem).workspace(problem);
}

bool forward(const Problem& problem, const ForwardBuffers& b) {
  check_problem(problem);
  check_weights(problem, b.weights);
  check_lengths(problem, b.lengths);
  if (problem.B == 0) return true;
  const bool runs = problem.T > 0;
  FASTRNN_CHECK(b.x || problem.I == 0 || !runs, "x must be given");
  FASTRNN_CHECK(b.feedback || problem.F == 0 || !runs, "feedback must be given");
  FASTRNN_CHECK(b.h_n && b.workspace, "h_n and workspace must be given");
  return kernels_for(problem).forward(problem, b);
}

bool backward(const Problem& problem, const BackwardBuffers& b) {
  check_problem(problem);
  check_weights(problem, b.weights);
  check_lengths(problem, b.lengths);
  if (problem.B == 0) return true;
  FASTRNN_CHECK((b.activated && b.dy) || problem.T == 0, "activated and dy must be given");
  FASTRNN_CHECK(b.dh0 && b.workspace, "dh0 and workspace must be given");
  return kernels_for(problem).backward(problem, b);
}

size_t workspace_bytes(const Forecast& forecast) {
  check_forecast(forecast);
  return kernels_for(forecast.problem).forecast_workspace(forecast);
}

bool forecast(const Forecast& f, const ForecastBuffers& b) {
  check_forecast(f);
  const Problem& p = f.problem;
  for (int layer = 0; layer < f.layers; ++layer) {
    Problem of_layer = p;
    if (layer) of_layer.I = p.N, of_layer.F = 0;
    check_weights(of_layer, b.weights[layer]);
  }
  if (p.B == 0) return true;
  if (f.ring) check_reads(f, b.reads);
  FASTRNN_CHECK(b.w_out && b.state && b.workspace, "w_out, state and workspace must be given");
  FASTRNN_CHECK(b.u || p.I == 0, "u must be given");
  FASTRNN_CHECK(b.out || p.T == 0, "out must be given");
  FASTRNN_CHECK(b.drivers || p.T == 0 || f.ring || p.I == (p.F ? 0 : f.O), "drivers must be given");
  return kernels_for(p).forecast(f, b);
}

size_t workspace_bytes(const Polynomial& p) {
  check_polynomial(p);
  return kernels().run[int(p.dtype)].polynomial_workspace(p);
}

bool forecast(const Polynomial& p, const PolynomialBuffers& b) {
  check_polynomial(p);
  if (p.B == 0) return true;
  FASTRNN_CHECK(b.monomials && b.w_out && b.window && b.workspace,
                "monomials, w_out, window and workspace must be given");
  FASTRNN_CHECK(b.out || p.T == 0, "out must be given");
  FASTRNN_CHECK(b.drivers || p.T == 0 || p.I == p.O, "drivers must be given");
  for (int64_t k = 0; k < p.order * p.features; ++k)
    FASTRNN_CHECK(b.monomials[k] >= 0 && b.monomials[k] <= p.delays * p.I,
                  "monomials must be in [0, delays*I] = [0, " << p.delays * p.I << "], got "
                                                              << b.monomials[k]);
  return kernels().run[int(p.dtype)].polynomial(p, b);
}

size_t workspace_bytes(const Gram& gram) {
  check_float(gram.states, "states"), check_float(gram.targets, "targets");
  check_size("n", gram.n, 0), check_size("N", gram.N, 1), check_size("O", gram.O, 0);
  check_threads(gram.threads);
  return kernels().gram_workspace(gram);
}

bool accumulate(const Gram& gram, const GramBuffers& b) {
  workspace_bytes(gram);
  if (gram.n == 0) return true;
  FASTRNN_CHECK(b.states && b.gram && b.sums && b.workspace,
                "states, gram, sums and workspace must be given");
  FASTRNN_CHECK((b.targets && b.cross) || gram.O == 0, "targets and cross must be given");
  for (int64_t k = 0; b.row_weights && k < gram.n; ++k)
    FASTRNN_CHECK(b.row_weights[k] >= 0, "row_weights must not be negative, at row " << k);
  return kernels().gram(gram, b);
}

}  // namespace fastrnn::reservoir
