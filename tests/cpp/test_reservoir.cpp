// The reservoir engine through its C++ interface, between guard zones: every layout, dtype and ISA
// against the equation in double, gradients by differences, the closed loop, and the Gram sums.
#include <fastrnn/reservoir.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "check.h"

namespace {

namespace fr = fastrnn::reservoir;
using test::Guarded;
using Doubles = std::vector<double>;

constexpr int64_t kBlock = fr::kBlock;

int64_t blocks(int64_t n) { return (n + kBlock - 1) / kBlock; }

template <class T>
constexpr fastrnn::Dtype kDtype =
    sizeof(T) == 4 ? fastrnn::Dtype::kFloat32 : fastrnn::Dtype::kFloat64;

// Rounding of some dozen terms of size 1, a few steps long.
template <class T>
constexpr double kTolerance = sizeof(T) == 4 ? 2e-5 : 4e-14;

template <class T>
void fill(Guarded<T>& to, test::Random& random, double scale = 1) {
  for (int64_t i = 0; i < to.count(); ++i) to.data()[i] = static_cast<T>(random.value() * scale);
}

// A random matrix of one member in some layout, and the same dense.
template <class T>
struct TestMatrix {
  Guarded<T> weights;
  Guarded<float> columns;  // for its alignment: what is in it are integers
  std::vector<int64_t> rows;
  Doubles dense;
  fr::Matrix view;

  TestMatrix(fr::Layout layout, int64_t n, int64_t K, bool wide, test::Random& random)
      : weights(stored(layout, n, K)),
        columns((column_bytes(layout, n, K, wide) + 3) / 4),
        dense(static_cast<size_t>(n * n)) {
    fill(weights, random, 0.3);
    view.layout = layout, view.K = K, view.wide = wide;
    view.weights = weights.data(), view.columns = columns.data();
    if (layout == fr::Layout::kWindows) {
      place_windows(n, random);
    } else {
      for (int64_t i = 0; i <= n; ++i) rows.push_back(i * K);
      for (int64_t i = 0; i < blocks(n) * kBlock; ++i)
        for (int64_t k = 0; k < (layout == fr::Layout::kPanels ? n : K); ++k)
          place(n, i, k, layout, random);
    }
    view.rows = rows.data();
  }

  static int64_t windows(int64_t n) { return (n + fr::kWindow - 1) / fr::kWindow; }
  // Of windows, every second has two vectors.
  static int64_t stored(fr::Layout layout, int64_t n, int64_t K) {
    if (layout == fr::Layout::kStrips) return blocks(n) * K * kBlock;
    if (layout == fr::Layout::kPanels) return blocks(n) * n * kBlock;
    const int64_t all = blocks(n) * windows(n);
    return layout == fr::Layout::kWindows ? (all + all / 2) * kBlock : n * K;
  }

  static int64_t column_bytes(fr::Layout layout, int64_t n, int64_t K, bool wide) {
    if (layout == fr::Layout::kWindows) return stored(layout, n, K);
    return (layout == fr::Layout::kStrips ? blocks(n) * K : n * K) * (wide ? 4 : 2);
  }
  unsigned char* column_memory() { return reinterpret_cast<unsigned char*>(columns.data()); }

  void place_windows(int64_t n, test::Random& random) {
    int64_t vector = 0;
    rows.push_back(0);
    for (int64_t w = 0; w < blocks(n) * windows(n); ++w) {
      const int64_t block = w / windows(n), first = w % windows(n) * fr::kWindow;
      for (const int64_t end = vector + 1 + w % 2; vector < end; ++vector)
        for (int64_t lane = 0; lane < kBlock; ++lane) {
          const int64_t entry = vector * kBlock + lane, i = block * kBlock + lane;
          const int64_t at_place = random.below(std::min<int64_t>(fr::kWindow, n - first));
          column_memory()[entry] = static_cast<unsigned char>(at_place);
          if (i >= n) weights.data()[entry] = 0;
          if (i < n) at(n, i, first + at_place) += static_cast<double>(weights.data()[entry]);
        }
      rows.push_back(vector);
    }
  }

  void place(int64_t n, int64_t i, int64_t k, fr::Layout layout, test::Random& random) {
    if (layout == fr::Layout::kRows) {
      if (i >= n) return;
      const int64_t column = random.below(n), entry = i * view.K + k;
      set_column(entry, column);
      at(n, i, column) += static_cast<double>(weights.data()[entry]);
      return;
    }
    const int64_t b = i / kBlock, lane = i % kBlock;
    const int64_t per_block = layout == fr::Layout::kStrips ? view.K : n;
    T& w = weights.data()[((b * per_block) + k) * kBlock + lane];
    if (i >= n) w = 0;
    if (layout == fr::Layout::kStrips && lane == 0) set_column(b * view.K + k, random.below(n));
    const int64_t column =
        layout == fr::Layout::kPanels ? k : (column_of(b * view.K + k) + lane) % n;
    if (i < n) at(n, i, column) += static_cast<double>(w);
  }

  double& at(int64_t n, int64_t i, int64_t j) { return dense[static_cast<size_t>(i * n + j)]; }
  void set_column(int64_t entry, int64_t column) {
    const auto narrow = static_cast<uint16_t>(column);
    const auto wide = static_cast<int32_t>(column);
    if (view.wide)
      std::memcpy(column_memory() + entry * 4, &wide, 4);
    else
      std::memcpy(column_memory() + entry * 2, &narrow, 2);
  }
  int64_t column_of(int64_t entry) {
    uint16_t narrow = 0;
    int32_t wide = 0;
    std::memcpy(&narrow, column_memory() + entry * (view.wide ? 4 : 2), 2);
    if (view.wide) std::memcpy(&wide, column_memory() + entry * 4, 4);
    return view.wide ? wide : narrow;
  }
};

double activate(fr::Activation f, double x) {
  switch (f) {
    case fr::Activation::kTanh:
      return std::tanh(x);
    case fr::Activation::kRelu:
      return x > 0 ? x : 0;
    case fr::Activation::kSigmoid:
      return 1 / (1 + std::exp(-x));
    case fr::Activation::kIdentity:
      break;
  }
  return x;
}

template <class T>
struct Reservoir {
  fr::Problem p;
  TestMatrix<T> recurrent, carry;
  Guarded<T> w_ih, w_fb, bias, leak;
  fr::Weights weights;

  Reservoir(const fr::Problem& problem, fr::Layout layout, bool wide, bool carries,
            test::Random& random)
      : p(problem),
        recurrent(layout, p.N, std::min<int64_t>(p.N, 5), wide, random),
        carry(layout, p.N, std::min<int64_t>(p.N, 3), wide, random),
        w_ih(p.N * p.I),
        w_fb(p.N * p.F),
        bias(p.N),
        leak(p.N) {
    for (Guarded<T>* buffer : {&w_ih, &w_fb, &bias, &leak}) fill(*buffer, random);
    for (int64_t i = 0; i < p.N; ++i) leak.data()[i] = std::abs(leak.data()[i]);
    weights.w_ih = w_ih.data(), weights.w_fb = w_fb.data();
    weights.bias = bias.data(), weights.leak = leak.data();
    weights.recurrent = recurrent.view;
    if (carries) weights.carry = carry.view;
  }

  // The state after a step on u and v.
  Doubles step(const Doubles& x, const T* u, const T* v) {
    Doubles next(x.size());
    for (int64_t i = 0; i < p.N; ++i) {
      auto sum = static_cast<double>(bias.data()[i]);
      double kept = weights.carry.layout == fr::Layout::kNone ? x[static_cast<size_t>(i)] : 0;
      for (int64_t k = 0; k < p.I; ++k) sum += double(w_ih.data()[i * p.I + k]) * double(u[k]);
      for (int64_t k = 0; k < p.F; ++k) sum += double(w_fb.data()[i * p.F + k]) * double(v[k]);
      for (int64_t j = 0; j < p.N; ++j) {
        sum += recurrent.at(p.N, i, j) * x[static_cast<size_t>(j)];
        if (weights.carry.layout != fr::Layout::kNone)
          kept += carry.at(p.N, i, j) * x[static_cast<size_t>(j)];
      }
      const auto a = static_cast<double>(leak.data()[i]);
      next[static_cast<size_t>(i)] = (1 - a) * kept + a * activate(p.activation, sum);
    }
    return next;
  }
};

struct Setting {
  fr::Layout layout;
  bool wide, carries, reverse;
  int64_t N, B;
  fr::Activation activation;
};

template <class T>
struct Sequences {
  Guarded<T> x, v, h0, y, h_n, activated;
  std::vector<int64_t> lengths;
  Guarded<unsigned char> workspace;

  Sequences(const fr::Problem& p, test::Random& random)
      : x(p.T * p.B * p.I),
        v(p.T * p.B * p.F),
        h0(p.B * p.N),
        y(p.T * p.B * p.N),
        h_n(p.B * p.N),
        activated(p.T * p.B * p.N),
        workspace(static_cast<int64_t>(fr::workspace_bytes(p))) {
    for (Guarded<T>* buffer : {&x, &v, &h0}) fill(*buffer, random);
    for (int64_t b = 0; b < p.B; ++b) lengths.push_back(b == 0 ? p.T : random.below(p.T + 1));
  }
  bool intact() {
    return x.guards_intact() && v.guards_intact() && h0.guards_intact() && y.guards_intact() &&
           h_n.guards_intact() && activated.guards_intact() && workspace.guards_intact();
  }
};

fr::Strides dense_strides(const fr::Problem& p, int64_t width) {
  return {p.T * p.B * width, p.B * width, width};
}

template <class T>
void run_forward(Reservoir<T>& r, Sequences<T>& s) {
  fr::ForwardBuffers b;
  b.weights = r.weights;
  b.x = s.x.data(), b.x_strides = dense_strides(r.p, r.p.I);
  b.feedback = s.v.data(), b.feedback_strides = dense_strides(r.p, r.p.F);
  b.lengths = s.lengths.data(), b.h0 = s.h0.data();
  b.y = s.y.data(), b.y_strides = dense_strides(r.p, r.p.N);
  b.h_n = s.h_n.data(), b.activated = s.activated.data(), b.workspace = s.workspace.data();
  fr::forward(r.p, b);
}

template <class T>
void check_forward(Reservoir<T>& r, Sequences<T>& s, const char* name) {
  const fr::Problem& p = r.p;
  for (int64_t b = 0; b < p.B; ++b) {
    Doubles x(s.h0.data() + b * p.N, s.h0.data() + (b + 1) * p.N);
    const int64_t length = s.lengths[static_cast<size_t>(b)];
    for (int64_t step = 0; step < p.T; ++step) {
      const int64_t t = p.reverse && step < length ? length - 1 - step : step;
      const int64_t row = t * p.B + b;
      if (step < length) x = r.step(x, s.x.data() + row * p.I, s.v.data() + row * p.F);
      for (int64_t i = 0; i < p.N; ++i) {
        const double expected = step < length ? x[static_cast<size_t>(i)] : 0;
        const double found = double(s.y.data()[row * p.N + i]);
        EXPECT(std::abs(found - expected) < kTolerance<T>, name << ": y at " << t << ", " << b
                                                                << ", " << i << ": " << found
                                                                << ", not " << expected);
      }
    }
    for (int64_t i = 0; i < p.N; ++i)
      EXPECT(
          std::abs(double(s.h_n.data()[b * p.N + i]) - x[static_cast<size_t>(i)]) < kTolerance<T>,
          name << ": h_n at " << b << ", " << i);
  }
  EXPECT(s.intact(), name << ": wrote out of bounds");
}

// The sum of dy y + dh_n h_n, whose gradient backward() gives.
template <class T>
double objective(Reservoir<T>& r, Sequences<T>& s, Guarded<T>& dy, Guarded<T>& dh_n) {
  run_forward(r, s);
  double sum = 0;
  for (int64_t i = 0; i < s.y.count(); ++i) sum += double(s.y.data()[i]) * double(dy.data()[i]);
  for (int64_t i = 0; i < s.h_n.count(); ++i)
    sum += double(s.h_n.data()[i]) * double(dh_n.data()[i]);
  return sum;
}

void check_backward(Reservoir<double>& r, Sequences<double>& s, test::Random& random,
                    const char* name) {
  const fr::Problem& p = r.p;
  Guarded<double> dy(s.y.count()), dh_n(s.h_n.count()), dx(s.x.count()), dv(s.v.count()),
      dh0(s.h0.count());
  fill(dy, random), fill(dh_n, random);
  run_forward(r, s);
  fr::BackwardBuffers b;
  b.weights = r.weights, b.lengths = s.lengths.data(), b.activated = s.activated.data();
  b.dy = dy.data(), b.dy_strides = dense_strides(p, p.N), b.dh_n = dh_n.data();
  b.dx = dx.data(), b.dx_strides = dense_strides(p, p.I);
  b.dfeedback = dv.data(), b.dfeedback_strides = dense_strides(p, p.F);
  b.dh0 = dh0.data(), b.workspace = s.workspace.data();
  fr::backward(p, b);
  constexpr double kStep = 1e-6, kNear = 1e-7;
  struct Input {
    Guarded<double>*of, *gradient;
  };
  for (const Input& input : {Input{&s.x, &dx}, Input{&s.v, &dv}, Input{&s.h0, &dh0}})
    for (int64_t i = 0; i < input.of->count(); i += 1 + random.below(4)) {
      double& value = input.of->data()[i];
      const double before = value;
      value = before + kStep;
      const double above = objective(r, s, dy, dh_n);
      value = before - kStep;
      const double slope = (above - objective(r, s, dy, dh_n)) / (2 * kStep);
      value = before;
      const double found = input.gradient->data()[i];
      EXPECT(std::abs(found - slope) < kNear, name << ": " << found << ", not " << slope);
    }
  EXPECT(dx.guards_intact() && dv.guards_intact() && dh0.guards_intact() && s.intact(),
         name << ": wrote out of bounds");
}

std::vector<Setting> settings() {
  std::vector<Setting> all;
  test::Random random(5);
  for (const fr::Layout layout :
       {fr::Layout::kStrips, fr::Layout::kRows, fr::Layout::kPanels, fr::Layout::kWindows})
    for (const int64_t N : {1, 7, 16, 33})
      for (const int64_t B : {1, 3, 18})
        all.push_back({layout, random.coin(), random.coin(), random.coin(), N, B,
                       fr::Activation(random.below(4))});
  return all;
}

fr::Problem problem(const Setting& s, fastrnn::Dtype dtype) {
  fr::Problem p;
  p.dtype = dtype, p.activation = s.activation, p.reverse = s.reverse;
  p.T = 4, p.B = s.B, p.I = 3, p.F = 2, p.N = s.N, p.threads = s.B > 1 ? 2 : 1;
  return p;
}

template <class T>
void test_runs(const char* isa) {
  test::Random random(1);
  for (const Setting& setting : settings()) {
    Reservoir<T> r(problem(setting, kDtype<T>), setting.layout, setting.wide, setting.carries,
                   random);
    Sequences<T> s(r.p, random);
    run_forward(r, s);
    check_forward(r, s, isa);
  }
}

void test_gradients(const char* isa) {
  test::Random random(2);
  for (const Setting& setting : settings()) {
    // The kink of relu has no slope.
    if (setting.B > 3 || setting.activation == fr::Activation::kRelu) continue;
    Reservoir<double> r(problem(setting, fastrnn::Dtype::kFloat64), setting.layout, setting.wide,
                        setting.carries, random);
    Sequences<double> s(r.p, random);
    check_backward(r, s, random, isa);
  }
}

// Two layers would need a second problem: test_kernels.py has them.
template <class T>
void test_forecast(const char* isa) {
  test::Random random(3);
  for (const int64_t N : {5, 20}) {
    fr::Problem p;
    p.dtype = kDtype<T>, p.T = 5, p.B = 3, p.I = 3, p.N = N;
    Reservoir<T> r(p, fr::Layout::kStrips, false, false, random);
    const fr::Forecast f = {p, 1, 2, true, true};
    Guarded<double> w_out(f.O * (N + p.I)), b_out(f.O), out(p.T * p.B * f.O);
    Guarded<T> drivers(p.T * p.B), u(p.B * p.I), state(p.B * N);
    fill(w_out, random), fill(b_out, random), fill(drivers, random), fill(u, random);
    fill(state, random);
    std::vector<T> last(u.data(), u.data() + u.count());
    Doubles x(state.data(), state.data() + state.count());
    Guarded<unsigned char> workspace(static_cast<int64_t>(fr::workspace_bytes(f)));
    fr::ForecastBuffers b;
    b.weights[0] = r.weights, b.w_out = w_out.data(), b.b_out = b_out.data();
    b.drivers = drivers.data(), b.drivers_strides = dense_strides(p, 1);
    b.u = u.data(), b.state = state.data(), b.workspace = workspace.data();
    b.out = out.data(), b.out_strides = dense_strides(p, f.O);
    fr::forecast(f, b);
    for (int64_t row = 0; row < p.B; ++row) {
      Doubles h(x.begin() + row * N, x.begin() + (row + 1) * N);
      T* input = last.data() + row * p.I;
      for (int64_t t = 0; t < p.T; ++t) {
        for (int64_t o = 0; o < f.O; ++o) {
          const double* w = w_out.data() + o * (N + p.I);
          double sum = b_out.data()[o];
          for (int64_t i = 0; i < N; ++i) {
            const double v = h[static_cast<size_t>(i)];
            sum += w[i] * (i % 2 ? v * v : v);
          }
          for (int64_t k = 0; k < p.I; ++k) sum += w[N + k] * double(input[k]);
          const double found = out.data()[(t * p.B + row) * f.O + o];
          EXPECT(std::abs(found - sum) < kTolerance<T> * 10, isa << ": " << found << " " << sum);
          // The input keeps what was found: the readout's rounding is not to add up.
          if (o == f.O - 1)
            for (int64_t k = 0; k < f.O; ++k) input[k] = T(out.data()[(t * p.B + row) * f.O + k]);
        }
        input[2] = drivers.data()[t * p.B + row];
        h = r.step(h, input, nullptr);
      }
      for (int64_t k = 0; k < p.I; ++k)
        EXPECT(u.data()[row * p.I + k] == input[k], isa << ": last input " << k);
    }
    EXPECT(out.guards_intact() && state.guards_intact() && u.guards_intact() &&
               workspace.guards_intact(),
           isa << ": wrote out of bounds");
  }
}

template <class T>
void test_gram(const char* isa) {
  test::Random random(4);
  for (const int64_t N : {1, 9, 50})
    for (const int64_t n : {1, 30, 515}) {
      const fr::Gram g = {kDtype<T>, fastrnn::Dtype::kFloat64, n, N, 2, 2};
      Guarded<T> states(n * N);
      Guarded<double> targets(n * 2), shift(N), weights(n), gram(N * N), cross(N * 2), sums(N);
      fill(states, random), fill(targets, random), fill(shift, random), fill(weights, random);
      for (int64_t k = 0; k < n; ++k) weights.data()[k] = std::abs(weights.data()[k]);
      for (Guarded<double>* sum : {&gram, &cross, &sums})
        for (int64_t i = 0; i < sum->count(); ++i) sum->data()[i] = 0;
      Guarded<unsigned char> workspace(static_cast<int64_t>(fr::workspace_bytes(g)));
      fr::GramBuffers b;
      b.states = states.data(), b.states_row = N, b.targets = targets.data(), b.targets_row = 2;
      b.shift = shift.data(), b.row_weights = weights.data();
      b.gram = gram.data(), b.cross = cross.data(), b.sums = sums.data();
      b.workspace = workspace.data();
      fr::accumulate(g, b);
      const auto x = [&](int64_t k, int64_t i) {
        return double(states.data()[k * N + i]) - shift.data()[i];
      };
      for (int64_t i = 0; i < N; ++i)
        for (int64_t j = 0; j < N + 2; ++j) {
          double sum = 0;
          for (int64_t k = 0; k < n; ++k)
            sum += weights.data()[k] * x(k, i) * (j < N ? x(k, j) : targets.data()[k * 2 + j - N]);
          const double found = j < N ? gram.data()[i * N + j] : cross.data()[i * 2 + j - N];
          EXPECT(j < i ? found == 0 : std::abs(found - sum) < 1e-11,
                 isa << ": sum " << i << ", " << j << ": " << found << ", not " << sum);
        }
      EXPECT(gram.guards_intact() && cross.guards_intact() && sums.guards_intact() &&
                 workspace.guards_intact(),
             isa << ": wrote out of bounds");
    }
}

template <class Call>
void expect_refused(const Call& call, const char* word) {
  try {
    call();
    EXPECT(false, "not refused: " << word);
  } catch (const std::invalid_argument& error) {
    EXPECT(std::string(error.what()).find(word) != std::string::npos, error.what());
  }
}

void test_misuse() {
  fr::Problem p;
  p.N = 0;
  expect_refused([&] { fr::workspace_bytes(p); }, "N");
  p.N = 4, p.threads = 0;
  expect_refused([&] { fr::workspace_bytes(p); }, "threads");
  p.threads = 1, p.dtype = fastrnn::Dtype::kFloat16;
  expect_refused([&] { fr::workspace_bytes(p); }, "dtype");
  p.dtype = fastrnn::Dtype::kFloat32;
  expect_refused([&] { fr::forward(p, {}); }, "w_ih");
  fr::Forecast f;
  f.problem = p, f.O = 2;
  expect_refused([&] { fr::workspace_bytes(f); }, "O");
  fr::Gram g;
  g.n = 1;
  expect_refused([&] { fr::accumulate(g, {}); }, "states");
}

}  // namespace

int main() {
  for (const std::string& isa : fastrnn::available_isas()) {
    fastrnn::set_isa(isa);
    test_runs<float>(isa.c_str());
    test_runs<double>(isa.c_str());
    test_gradients(isa.c_str());
    test_forecast<float>(isa.c_str());
    test_forecast<double>(isa.c_str());
    test_gram<float>(isa.c_str());
    test_gram<double>(isa.c_str());
  }
  test_misuse();
  return test::finish("test_reservoir");
}
