// Recurrent layers in plain scalar double, one sequence at a time: what the engine is compared
// with. It shares nothing with the engine but the Problem.
#pragma once

#include <fastrnn/fastrnn.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "check.h"

namespace test {

using fastrnn::Activation;
using fastrnn::Cell;
using fastrnn::Problem;
using Values = std::vector<double>;

// The lengths of the sequences of a packed batch, descending; empty: a dense batch.
using Lengths = std::vector<int64_t>;

inline int gate_count(Cell cell) { return cell == Cell::kElman ? 1 : cell == Cell::kGru ? 3 : 4; }

// Sizes that follow from a problem, and the order of rows (t, b): by time, then by sequence.
struct Geometry {
  explicit Geometry(const Problem& p, const Lengths& lengths)
      : O(p.P ? p.P : p.H), G(gate_count(p.cell)), D(p.directions) {
    length.assign(static_cast<size_t>(p.B), p.T);
    if (!lengths.empty()) length = lengths;
    offsets.push_back(0);
    for (int64_t t = 0; t < p.T; ++t) {
      int64_t alive = 0;
      for (int64_t n : length) alive += n > t;
      offsets.push_back(offsets.back() + alive);
    }
    N = offsets.back();
  }
  int64_t row(int64_t t, int64_t b) const { return offsets[static_cast<size_t>(t)] + b; }

  int64_t O, G, D, N;
  Lengths length;
  std::vector<int64_t> offsets;
};

struct Inputs {
  Values x;        // [N,I]
  Values h0, c0;   // [D,B,O], [D,B,H]
  Values w[2][5];  // w_ih, w_hh, b_ih, b_hh, w_hr of each direction
  Values dy;       // [N,D*O]
  Values dh_n, dc_n;
};

// Which inputs are given; the others are null for the engine and zeros for the reference.
struct Given {
  bool h0 = true, c0 = true, dy = true, dh_n = true, dc_n = true;
};

inline Inputs make_inputs(const Problem& p, const Geometry& g, const Given& given, uint64_t seed) {
  Random random(seed);
  const auto draw = [&](int64_t n, double scale) {
    Values v(static_cast<size_t>(n));
    for (double& e : v) e = static_cast<float>(random.value() * scale);
    return v;
  };
  const int64_t gates = g.G * p.H, lstm = p.cell == Cell::kLstm;
  const auto of = [](int64_t k) { return 1.5 / std::sqrt(double(k > 0 ? k : 1)); };
  Inputs in;
  in.x = draw(g.N * p.I, 2);
  in.h0 = draw(g.D * p.B * g.O, given.h0 ? 1 : 0);
  in.c0 = draw(lstm * g.D * p.B * p.H, given.c0 ? 1 : 0);
  for (int64_t d = 0; d < g.D; ++d) {
    Values(&w)[5] = in.w[d];
    w[0] = draw(gates * p.I, of(p.I)), w[1] = draw(gates * g.O, of(g.O));
    w[2] = draw(gates, p.bias ? 1 : 0), w[3] = draw(gates, p.bias ? 1 : 0);
    w[4] = draw(p.P * p.H, of(p.H));
  }
  in.dy = draw(g.N * g.D * g.O, given.dy ? 1 : 0);
  in.dh_n = draw(g.D * p.B * g.O, given.dh_n ? 1 : 0);
  in.dc_n = draw(lstm * g.D * p.B * p.H, given.dc_n ? 1 : 0);
  return in;
}

struct Outputs {
  Values y, h_n, c_n;
  Values dx, dh0, dc0, dw[2][5];
  double kink = INFINITY;  // the smallest |pre-activation|, where relu's gradient may differ
};

class Reference {
 public:
  Reference(const Problem& p, const Geometry& g, const Inputs& in) : p_(p), g_(g), in_(in) {}

  Outputs run(bool gradients) {
    const auto sized = [](int64_t n) { return Values(static_cast<size_t>(n), 0.0); };
    Outputs out;
    out.y = sized(g_.N * g_.D * g_.O);
    out.h_n = sized(g_.D * p_.B * g_.O);
    out.c_n = sized(static_cast<int64_t>(in_.c0.size()));
    if (gradients) {
      out.dx = sized(g_.N * p_.I), out.dh0 = out.h_n, out.dc0 = out.c_n;
      for (int64_t d = 0; d < g_.D; ++d)
        for (int i = 0; i < 5; ++i) out.dw[d][i] = Values(in_.w[d][i].size(), 0.0);
    }
    for (int64_t d = 0; d < g_.D; ++d)
      for (int64_t b = 0; b < p_.B; ++b) sequence(d, b, gradients, out);
    return out;
  }

 private:
  struct Step {
    Values before, cell_before;  // h and c that the step reads
    Values gate, recurrent;      // activated gates; GRU: W_hn h + b_hn
    Values cell, full, after;    // c', output before projection, output
  };

  bool backwards(int64_t d) const { return d == 1 || p_.reverse; }

  void sequence(int64_t d, int64_t b, bool gradients, Outputs& out) const {
    const int64_t n = g_.length[static_cast<size_t>(b)];
    std::vector<Step> steps(static_cast<size_t>(n));
    const double* h0 = &in_.h0[static_cast<size_t>((d * p_.B + b) * g_.O)];
    Values h(h0, h0 + g_.O), c;
    if (!in_.c0.empty()) {
      const double* c0 = &in_.c0[static_cast<size_t>((d * p_.B + b) * p_.H)];
      c.assign(c0, c0 + p_.H);
    }
    for (int64_t s = 0; s < n; ++s) {
      const int64_t row = g_.row(backwards(d) ? n - 1 - s : s, b);
      Step& step = steps[static_cast<size_t>(s)];
      step.before = h, step.cell_before = c;
      forward(d, row, step, out.kink);
      h = step.after, c = step.cell;
      for (int64_t o = 0; o < g_.O; ++o) out.y[at(row, d, o)] = h[size_t(o)];
    }
    for (int64_t o = 0; o < g_.O; ++o) out.h_n[size_t((d * p_.B + b) * g_.O + o)] = h[size_t(o)];
    for (size_t u = 0; u < c.size(); ++u) out.c_n[size_t((d * p_.B + b) * p_.H) + u] = c[u];
    if (gradients) back(d, b, steps, out);
  }

  size_t at(int64_t row, int64_t d, int64_t o) const {
    return static_cast<size_t>((row * g_.D + d) * g_.O + o);
  }

  // out = w v (+ bias); out += w^T v; dw += v u^T.
  static Values times(const Values& w, const double* v, size_t k, const Values& bias) {
    Values out(k ? w.size() / k : bias.size(), 0.0);
    for (size_t i = 0; i < out.size(); ++i) {
      double sum = bias.empty() ? 0.0 : bias[i];
      for (size_t j = 0; j < k; ++j) sum += w[i * k + j] * v[j];
      out[i] = sum;
    }
    return out;
  }
  static void add_transposed(const Values& w, const Values& v, size_t k, double* out) {
    for (size_t i = 0; i < v.size(); ++i)
      for (size_t j = 0; j < k; ++j) out[j] += w[i * k + j] * v[i];
  }
  static void add_outer(const Values& v, const double* u, size_t k, Values& dw) {
    for (size_t i = 0; i < v.size(); ++i)
      for (size_t j = 0; j < k; ++j) dw[i * k + j] += v[i] * u[j];
  }
  static double sigmoid(double a) { return 1.0 / (1.0 + std::exp(-a)); }

  void forward(int64_t d, int64_t row, Step& s, double& kink) const {
    const auto H = static_cast<size_t>(p_.H);
    const Values a = times(in_.w[d][0], x(row), size_t(p_.I), in_.w[d][2]);
    const Values r = times(in_.w[d][1], s.before.data(), size_t(g_.O), in_.w[d][3]);
    s.gate.resize(a.size()), s.full.resize(H);
    if (p_.cell == Cell::kLstm) s.cell.resize(H);
    if (p_.cell == Cell::kGru) s.recurrent.assign(r.begin() + 2 * p_.H, r.end());
    for (size_t u = 0; u < H; ++u) {
      const auto sum = [&](size_t gate) { return a[gate * H + u] + r[gate * H + u]; };
      double* gate = &s.gate[u];
      if (p_.cell == Cell::kElman) {
        kink = std::fmin(kink, std::fabs(sum(0)));
        s.full[u] = gate[0] =
            p_.activation == Activation::kTanh ? std::tanh(sum(0)) : std::fmax(sum(0), 0.0);
      } else if (p_.cell == Cell::kGru) {
        gate[0] = sigmoid(sum(0)), gate[H] = sigmoid(sum(1));
        gate[2 * H] = std::tanh(a[2 * H + u] + gate[0] * r[2 * H + u]);
        s.full[u] = (1 - gate[H]) * gate[2 * H] + gate[H] * s.before[u];
      } else {
        gate[0] = sigmoid(sum(0)), gate[H] = sigmoid(sum(1));
        gate[2 * H] = std::tanh(sum(2)), gate[3 * H] = sigmoid(sum(3));
        s.cell[u] = gate[H] * s.cell_before[u] + gate[0] * gate[2 * H];
        s.full[u] = gate[3 * H] * std::tanh(s.cell[u]);
      }
    }
    s.after = p_.P ? times(in_.w[d][4], s.full.data(), H, {}) : s.full;
  }

  const double* x(int64_t row) const { return in_.x.data() + row * p_.I; }

  void back(int64_t d, int64_t b, const std::vector<Step>& steps, Outputs& out) const {
    const auto H = static_cast<size_t>(p_.H), O = static_cast<size_t>(g_.O);
    const auto state = static_cast<size_t>(d * p_.B + b), I = static_cast<size_t>(p_.I);
    Values dh(in_.dh_n.begin() + int64_t(state * O), in_.dh_n.begin() + int64_t((state + 1) * O));
    Values dc(H, 0.0), (&dw)[5] = out.dw[d];
    if (!in_.dc_n.empty()) dc.assign(&in_.dc_n[state * H], &in_.dc_n[state * H] + H);
    const auto n = static_cast<int64_t>(steps.size());
    for (int64_t i = n - 1; i >= 0; --i) {
      const Step& s = steps[static_cast<size_t>(i)];
      const int64_t row = g_.row(backwards(d) ? n - 1 - i : i, b);
      for (size_t o = 0; o < O; ++o) dh[o] += in_.dy[at(row, d, int64_t(o))];
      Values dm(dh);
      if (p_.P) {
        dm.assign(H, 0.0);
        add_transposed(in_.w[d][4], dh, H, dm.data());
        add_outer(dh, s.full.data(), H, dw[4]);
      }
      Values da(s.gate.size()), dr(s.gate.size()), direct(O, 0.0);
      differentiate(s, dm, dc, da, dr, direct);
      add_outer(da, x(row), I, dw[0]), add_outer(dr, s.before.data(), O, dw[1]);
      for (size_t j = 0; j < da.size(); ++j) dw[2][j] += da[j], dw[3][j] += dr[j];
      add_transposed(in_.w[d][0], da, I, out.dx.data() + row * p_.I);
      dh = direct;
      add_transposed(in_.w[d][1], dr, O, dh.data());
    }
    for (size_t o = 0; o < O; ++o) out.dh0[state * O + o] = dh[o];
    if (!out.dc0.empty())
      for (size_t u = 0; u < H; ++u) out.dc0[state * H + u] = dc[u];
  }

  // da, dr: gradients of the input and the recurrent pre-activations; dc: of c', then of c;
  // direct: what reaches the previous output outside W_hh.
  void differentiate(const Step& s, const Values& dm, Values& dc, Values& da, Values& dr,
                     Values& direct) const {
    const auto H = static_cast<size_t>(p_.H);
    for (size_t u = 0; u < H; ++u) {
      const double* gate = &s.gate[u];
      if (p_.cell == Cell::kElman) {
        const bool flat = gate[0] <= 0;
        const double slope =
            p_.activation == Activation::kTanh ? 1 - gate[0] * gate[0] : (flat ? 0.0 : 1.0);
        da[u] = dr[u] = dm[u] * slope;
      } else if (p_.cell == Cell::kGru) {
        const double r = gate[0], z = gate[H], n = gate[2 * H];
        const double dn = dm[u] * (1 - z) * (1 - n * n);
        da[u] = dr[u] = dn * s.recurrent[u] * r * (1 - r);
        da[H + u] = dr[H + u] = dm[u] * (s.before[u] - n) * z * (1 - z);
        da[2 * H + u] = dn, dr[2 * H + u] = dn * r;
        direct[u] = dm[u] * z;
      } else {
        const double i = gate[0], f = gate[H], g = gate[2 * H], o = gate[3 * H];
        const double t = std::tanh(s.cell[u]), d = dc[u] + dm[u] * o * (1 - t * t);
        da[u] = d * g * i * (1 - i), da[H + u] = d * s.cell_before[u] * f * (1 - f);
        da[2 * H + u] = d * i * (1 - g * g), da[3 * H + u] = dm[u] * t * o * (1 - o);
        for (size_t j = u; j < da.size(); j += H) dr[j] = da[j];
        dc[u] = d * f;
      }
    }
  }

  const Problem& p_;
  const Geometry& g_;
  const Inputs& in_;
};

}  // namespace test
