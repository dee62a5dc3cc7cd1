// Closed loops of rings and of delayed products through the C++ interface, between guard zones,
// against the equations in double, and what they refuse.
#include <fastrnn/reservoir.h>

#include <cmath>
#include <stdexcept>

#include "check.h"

namespace {

namespace fr = fastrnn::reservoir;
using test::Guarded;
using Doubles = std::vector<double>;

template <class T>
constexpr fastrnn::Dtype kDtype =
    sizeof(T) == 4 ? fastrnn::Dtype::kFloat32 : fastrnn::Dtype::kFloat64;

template <class T>
constexpr double kTolerance = sizeof(T) == 4 ? 2e-5 : 4e-14;

template <class T>
void fill(Guarded<T>& to, test::Random& random, double scale = 1) {
  for (int64_t i = 0; i < to.count(); ++i) to.data()[i] = static_cast<T>(random.value() * scale);
}

double odd_square(bool square, int64_t i, double v) { return square && i % 2 ? v * v : v; }

// A ring of dense members, and its step in double.
template <class T>
struct Ring {
  fr::Forecast f;
  int64_t M, N, I, O, B;
  Guarded<T> w_ih, bias, leak, panels;
  Guarded<double> w_out, b_out;
  std::vector<int64_t> reads;
  fr::ForecastBuffers b;

  Ring(const fr::Forecast& forecast, test::Random& random)
      : f(forecast),
        M(f.problem.M),
        N(f.problem.N),
        I(f.problem.I),
        O(f.O),
        B(f.problem.B),
        w_ih(M * N * I),
        bias(M * N),
        leak(M * N),
        panels(M * blocks() * N * fr::kBlock),
        w_out(O * width()),
        b_out(O) {
    fill(w_ih, random), fill(bias, random), fill(leak, random), fill(panels, random, 0.3);
    fill(w_out, random, 0.3), fill(b_out, random);
    for (int64_t i = 0; i < M * N; ++i) leak.data()[i] = std::abs(leak.data()[i]);
    for (int64_t i = 0; i < M * I; ++i) reads.push_back(random.below(O));
    fr::Weights& w = b.weights[0];
    w.w_ih = w_ih.data(), w.bias = bias.data(), w.leak = leak.data();
    w.recurrent.layout = fr::Layout::kPanels, w.recurrent.weights = panels.data();
    b.w_out = w_out.data(), b.b_out = b_out.data(), b.reads = reads.data();
  }

  int64_t blocks() const { return (N + fr::kBlock - 1) / fr::kBlock; }
  int64_t width() const { return M * N + (f.sees_input ? O : 0); }

  // Of all members, h [M,N].
  Doubles read_out(const Doubles& h, const Doubles& u) {
    Doubles out;
    for (int64_t o = 0; o < O; ++o) {
      const double* w = w_out.data() + o * width();
      double sum = b_out.data()[o];
      for (int64_t i = 0; i < M * N; ++i)
        sum += w[i] * odd_square(f.square, i % N, h[static_cast<size_t>(i)]);
      for (int64_t k = 0; f.sees_input && k < O; ++k)
        sum += w[M * N + k] * u[static_cast<size_t>(k)];
      out.push_back(sum);
    }
    return out;
  }

  Doubles step(const Doubles& h, const Doubles& u) {
    Doubles next;
    for (int64_t m = 0; m < M; ++m)
      for (int64_t i = 0; i < N; ++i) {
        const int64_t unit = m * N + i, block = m * blocks() + i / fr::kBlock;
        auto sum = static_cast<double>(bias.data()[unit]);
        for (int64_t k = 0; k < I; ++k)
          sum += double(w_ih.data()[unit * I + k]) *
                 u[static_cast<size_t>(reads[static_cast<size_t>(m * I + k)])];
        for (int64_t k = 0; k < N; ++k)
          sum += double(panels.data()[(block * N + k) * fr::kBlock + i % fr::kBlock]) *
                 h[static_cast<size_t>(m * N + k)];
        const auto a = static_cast<double>(leak.data()[unit]);
        next.push_back((1 - a) * h[static_cast<size_t>(unit)] + a * std::tanh(sum));
      }
    return next;
  }
};

template <class T>
void check_ring(const fr::Forecast& f, test::Random& random, const char* isa) {
  Ring<T> r(f, random);
  const int64_t steps = f.problem.T, units = r.M * r.N;
  Guarded<T> u(r.B * r.O), state(r.M * r.B * r.N);
  Guarded<double> out(steps * r.B * r.O);
  fill(u, random), fill(state, random);
  const std::vector<T> u0(u.data(), u.data() + u.count());
  const std::vector<T> h0(state.data(), state.data() + state.count());
  Guarded<unsigned char> workspace(static_cast<int64_t>(fr::workspace_bytes(f)));
  r.b.u = u.data(), r.b.state = state.data(), r.b.workspace = workspace.data();
  r.b.out = out.data(), r.b.out_strides = {0, r.B * r.O, r.O};
  EXPECT(fr::forecast(f, r.b), isa << ": interrupted");
  const auto close = [](double a, double b) { return std::abs(a - b) < kTolerance<T> * 10; };
  for (int64_t row = 0; row < r.B; ++row) {
    Doubles h, input(u0.begin() + row * r.O, u0.begin() + (row + 1) * r.O);
    for (int64_t i = 0; i < units; ++i)
      h.push_back(double(h0[static_cast<size_t>((i / r.N * r.B + row) * r.N + i % r.N)]));
    for (int64_t t = 0; t < steps; ++t) {
      const Doubles wanted = r.read_out(h, input);
      const double* found = out.data() + (t * r.B + row) * r.O;
      for (int64_t o = 0; o < r.O; ++o) {
        EXPECT(close(found[o], wanted[static_cast<size_t>(o)]), isa << ": output " << o);
        // The input keeps what was found: the readout's rounding is not to add up.
        input[static_cast<size_t>(o)] = double(T(found[o]));
      }
      h = r.step(h, input);
    }
    for (int64_t i = 0; i < units; ++i)
      EXPECT(close(double(state.data()[(i / r.N * r.B + row) * r.N + i % r.N]),
                   h[static_cast<size_t>(i)]),
             isa << ": state " << i);
    for (int64_t o = 0; o < r.O; ++o)
      EXPECT(double(u.data()[row * r.O + o]) == input[static_cast<size_t>(o)], isa << ": input");
  }
  EXPECT(out.guards_intact() && state.guards_intact() && u.guards_intact() &&
             workspace.guards_intact(),
         isa << ": wrote out of bounds");
}

template <class T>
void test_rings(const char* isa) {
  test::Random random(6);
  for (const int64_t N : {1, 16, 21})
    for (const int64_t B : {1, 3})
      for (const bool more : {false, true}) {
        fr::Forecast f;
        f.problem.dtype = kDtype<T>, f.problem.M = 3, f.problem.T = 5, f.problem.B = B;
        f.problem.I = 4, f.problem.N = N, f.problem.threads = more ? 2 : 1;
        f.O = 9, f.square = f.sees_input = more, f.ring = true;
        check_ring<T>(f, random, isa);
      }
}

// l = [u_t, u_{t-skip}, ..., 1] of the last inputs, the present one last.
Doubles lags(const fr::Polynomial& p, const std::vector<Doubles>& past) {
  Doubles all;
  for (int64_t d = 0; d < p.delays; ++d)
    for (const double v : past[past.size() - 1 - static_cast<size_t>(d * p.skip)]) all.push_back(v);
  all.push_back(1);
  return all;
}

template <class T>
void check_products(const fr::Polynomial& p, test::Random& random, const char* isa) {
  const int64_t width = p.features + (p.sees_input ? p.I : 0), D = p.I - p.O, w = p.window();
  std::vector<int64_t> monomials;
  for (int64_t i = 0; i < p.order * p.features; ++i)
    monomials.push_back(random.below(p.delays * p.I + 1));
  Guarded<double> w_out(p.O * width), b_out(p.O), out(p.T * p.B * p.O);
  Guarded<T> drivers(p.T * p.B * D), window(w * p.B * p.I);
  fill(w_out, random, 0.3), fill(b_out, random), fill(drivers, random), fill(window, random);
  const std::vector<T> start(window.data(), window.data() + window.count());
  Guarded<unsigned char> workspace(static_cast<int64_t>(fr::workspace_bytes(p)));
  fr::PolynomialBuffers b;
  b.monomials = monomials.data(), b.w_out = w_out.data(), b.b_out = b_out.data();
  b.drivers = drivers.data(), b.drivers_strides = {0, p.B * D, D};
  b.window = window.data(), b.workspace = workspace.data();
  b.out = out.data(), b.out_strides = {0, p.B * p.O, p.O};
  EXPECT(fr::forecast(p, b), isa << ": interrupted");
  for (int64_t row = 0; row < p.B; ++row) {
    std::vector<Doubles> past;
    for (int64_t i = 0; i < w; ++i) {
      const auto from = start.begin() + (i * p.B + row) * p.I;
      past.emplace_back(from, from + p.I);
    }
    for (int64_t t = 0; t < p.T; ++t) {
      const Doubles l = lags(p, past);
      Doubles next;
      for (int64_t o = 0; o < p.O; ++o) {
        double sum = b_out.data()[o];
        for (int64_t i = 0; i < width; ++i) {
          double v = i < p.features ? 1 : past.back()[static_cast<size_t>(i - p.features)];
          for (int64_t k = 0; i < p.features && k < p.order; ++k)
            v *= l[static_cast<size_t>(monomials[static_cast<size_t>(k * p.features + i)])];
          sum += w_out.data()[o * width + i] * odd_square(p.square && i < p.features, i, v);
        }
        const double found = out.data()[(t * p.B + row) * p.O + o];
        EXPECT(std::abs(found - sum) < kTolerance<T> * 10 * (1 + std::abs(sum)),
               isa << ": " << found << ", not " << sum);
        next.push_back(double(T(found)));
      }
      for (int64_t k = 0; k < D; ++k)
        next.push_back(double(drivers.data()[(t * p.B + row) * D + k]));
      past.push_back(next);
    }
    for (int64_t i = 0; i < w * p.I; ++i)
      EXPECT(double(window.data()[(i / p.I * p.B + row) * p.I + i % p.I]) ==
                 past[past.size() - static_cast<size_t>(w - i / p.I)][static_cast<size_t>(i % p.I)],
             isa << ": window " << i);
  }
  EXPECT(out.guards_intact() && window.guards_intact() && workspace.guards_intact(),
         isa << ": wrote out of bounds");
}

template <class T>
void test_products(const char* isa) {
  test::Random random(7);
  for (const int64_t delays : {1, 3})
    for (const int64_t skip : {1, 2})
      for (const bool more : {false, true}) {
        fr::Polynomial p;
        p.dtype = kDtype<T>, p.T = 6, p.B = more ? 3 : 1, p.I = 3, p.O = more ? 2 : 3;
        p.delays = delays, p.skip = skip, p.order = more ? 3 : 1, p.features = 11;
        p.square = p.sees_input = more, p.threads = more ? 2 : 1;
        check_products<T>(p, random, isa);
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
  test::Random random(8);
  fr::Forecast f;
  f.problem.I = 2, f.problem.N = 3, f.O = 2, f.ring = true;
  Ring<float> r(f, random);
  Guarded<float> memory(4096);
  Guarded<double> out(2);
  r.b.u = r.b.state = r.b.workspace = memory.data(), r.b.out = out.data();
  r.reads[1] = 2;
  expect_refused([&] { fr::forecast(f, r.b); }, "reads");
  r.b.reads = nullptr;
  expect_refused([&] { fr::forecast(f, r.b); }, "reads");
  f.problem.F = 2;
  expect_refused([&] { fr::workspace_bytes(f); }, "F must be 0");
  fr::Polynomial p;
  p.O = 2;
  expect_refused([&] { fr::workspace_bytes(p); }, "O must be at most");
  p.O = 1;
  expect_refused([&] { fr::forecast(p, {}); }, "monomials");
  const int64_t beyond = 2;
  fr::PolynomialBuffers b;
  b.monomials = &beyond, b.w_out = out.data(), b.out = out.data();
  b.window = b.workspace = memory.data();
  expect_refused([&] { fr::forecast(p, b); }, "monomials must be in");
}

}  // namespace

int main() {
  for (const std::string& isa : fastrnn::available_isas()) {
    fastrnn::set_isa(isa);
    test_rings<float>(isa.c_str());
    test_rings<double>(isa.c_str());
    test_products<float>(isa.c_str());
    test_products<double>(isa.c_str());
  }
  test_misuse();
  return test::finish("test_loops");
}
