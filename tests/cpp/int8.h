// 8-bit weights: a forward pass and the loop that it is held against.
#pragma once

#include <algorithm>

#include "engine.h"

namespace test {

// One forward pass with 8-bit weights, and a loop that rounds the operands' rows as it does.
//
// Each step starts from the h that the engine itself returned, so that an operand is rounded from
// the very same numbers. Where one of these is so close to halfway that its rounding is open, as is
// what a projection reads and nobody sees, the result may be off by what that is worth.
class Int8Run {
 public:
  static inline int64_t cases = 0;
  static inline int64_t compared = 0, open = 0;  // results: all, and those a rounding left open
  static inline double worst = 0;                // as a part of what is tolerated

  Int8Run(const Problem& problem, const Lengths& lengths, uint64_t seed)
      : p_(problem), g_(problem, lengths), random_(seed) {
    p_.dtype = Dtype::kInt8, p_.ragged = !lengths.empty();
    setup_.problem = p_, setup_.lengths = lengths;
    expect_no_crash(describe(setup_));
    const fastrnn::Sizes sizes = fastrnn::sizes(p_);
    const int64_t gates = g_.G * p_.H, states = g_.D * p_.B;
    x_ = values(rows_of(p_.I), 2), h0_ = values(states * g_.O, 1);
    y_ = room(rows_of(g_.D * g_.O)), h_n_ = room(states * g_.O);
    if (p_.cell == Cell::kLstm) c0_ = values(states * p_.H, 1), c_n_ = room(states * p_.H);
    packed_ = bytes(int64_t(sizes.packed)), workspace_ = bytes(int64_t(sizes.workspace));
    for (int64_t d = 0; d < g_.D; ++d) {
      Direction& w = w_[d];
      matrix(w.ih, gates, p_.I), matrix(w.hh, gates, g_.O);
      if (p_.P) matrix(w.hr, p_.P, p_.H);
      if (p_.bias) w.b_ih = values(gates, 1), w.b_hh = values(gates, 1);
    }
    if (p_.B > 1)  // an operand without a largest number
      for (int64_t i = 0; i < p_.I; ++i) x_->data()[row(0, 1, p_.I) + i] = 0;
  }

  // What a test does to the buffers before the call.
  std::function<void(fastrnn::ForwardBuffers&)> change;

  void forward(bool repack) {
    fastrnn::ForwardBuffers b = buffers(repack);
    if (change) change(b);
    fastrnn::forward(p_, b);
  }

  void check() {
    forward(true);
    for (int64_t d = 0; d < g_.D; ++d)
      for (int64_t b = 0; b < p_.B; ++b) sequence(d, b);
    std::vector<float> before(y_->data(), y_->data() + y_->count());
    forward(false);
    EXPECT(!std::memcmp(before.data(), y_->data(), before.size() * sizeof(float)),
           "the packed copy, " << describe(setup_));
    expect_clean();
    for (int64_t r = 0, width = g_.D * g_.O; r + 1 < g_.N; ++r)
      for (int64_t i = 0; i < kGap; ++i)
        EXPECT(y_->untouched(r * (width + kGap) + width + i),
               "written between the rows, " << describe(setup_));
    ++cases;
  }

  void expect_clean() {
    for (auto* at : {&x_, &h0_, &c0_, &y_, &h_n_, &c_n_})
      EXPECT(!*at || (*at)->guards_intact(), "written outside a buffer, " << describe(setup_));
    for (auto* at : {&packed_, &workspace_})
      EXPECT((*at)->guards_intact(), "written outside memory, " << describe(setup_));
  }

 private:
  static constexpr int64_t kGap = 3;  // between rows of x and of y
  using Floats = std::unique_ptr<Guarded<float>>;
  using Bytes = std::unique_ptr<Guarded<unsigned char>>;
  struct Matrix {
    Bytes numbers;
    Floats scales;
    int64_t rows = 0, n = 0;

    double at(int64_t r, int64_t k) const {
      return static_cast<int8_t>(numbers->data()[r * n + k]);
    }
  };
  struct Direction {
    Matrix ih, hh, hr;
    Floats b_ih, b_hh;
  };
  struct Product {
    Values value, slack;
  };

  static Floats room(int64_t n) { return std::make_unique<Guarded<float>>(n); }
  static Bytes bytes(int64_t n) {
    Bytes p = std::make_unique<Guarded<unsigned char>>(n);
    std::memset(p->data(), 0xff, size_t(n));
    return p;
  }
  Floats values(int64_t n, double scale) {
    Floats p = room(n);
    for (int64_t i = 0; i < n; ++i) p->data()[i] = static_cast<float>(random_.value() * scale);
    return p;
  }
  void matrix(Matrix& m, int64_t rows, int64_t n) {
    m.rows = rows, m.n = n;
    m.numbers = bytes(rows * n), m.scales = room(rows);
    for (int64_t i = 0; i < rows * n; ++i)
      m.numbers->data()[i] = static_cast<unsigned char>(random_.below(255) - 127);
    for (int64_t r = 0; r < rows; ++r)
      m.scales->data()[r] =
          static_cast<float>((1 + random_.value()) / (127 * std::sqrt(double(n))));
  }
  int64_t rows_of(int64_t width) const { return (g_.N - 1) * (width + kGap) + width; }
  int64_t row(int64_t t, int64_t b, int64_t width) const { return g_.row(t, b) * (width + kGap); }
  template <class P>
  static auto* at(const P& p) {
    return p ? p->data() : nullptr;
  }

  fastrnn::ForwardBuffers buffers(bool repack) {
    fastrnn::ForwardBuffers b;
    const auto strides = [&](int64_t width) {
      return Strides{p_.ragged ? -1 : p_.B * (width + kGap), width + kGap};
    };
    b.x = x_->data(), b.x_strides = strides(p_.I);
    b.offsets = p_.ragged ? g_.offsets.data() : nullptr;
    b.h0 = at(h0_), b.c0 = at(c0_);
    for (int64_t d = 0; repack && d < g_.D; ++d) {
      const Direction& w = w_[d];
      b.weights[d] = {at(w.ih.numbers), at(w.hh.numbers), at(w.b_ih),      at(w.b_hh),
                      at(w.hr.numbers), at(w.ih.scales),  at(w.hh.scales), at(w.hr.scales)};
    }
    b.y = y_->data(), b.y_strides = strides(g_.D * g_.O);
    b.h_n = at(h_n_), b.c_n = at(c_n_);
    b.packed = packed_->data(), b.repack = repack, b.workspace = workspace_->data();
    return b;
  }

  // `open`: how far each of the numbers may be off.
  static Product times(const Matrix& m, const Values& v, const Values& open) {
    float most = 0;
    for (double e : v) most = std::fmax(most, std::fabs(float(e)));
    const double factor = most > 0 ? 127.0f / most : 0.0f, step = most / 127.0;
    std::vector<double> numbers(v.size()), flip(v.size());
    for (size_t k = 0; k < v.size(); ++k) {
      const double scaled = v[k] * factor;
      numbers[k] = std::nearbyint(scaled);
      // A product and a sum in float32 find the same integer further than that from halfway.
      const double window = 2e-5 + open[k] * factor;
      if (most > 0 && std::fabs(std::fabs(scaled - numbers[k]) - 0.5) <= window)
        flip[k] = std::ceil(window) * step;
    }
    Product out{Values(size_t(m.rows)), Values(size_t(m.rows))};
    for (int64_t r = 0; r < m.rows; ++r) {
      double sum = 0, slack = 0;
      for (int64_t k = 0; k < m.n; ++k) {
        sum += numbers[size_t(k)] * m.at(r, k);
        slack += flip[size_t(k)] * std::fabs(m.at(r, k));
      }
      const double scale = double(m.scales->data()[r]);
      out.value[size_t(r)] = sum * step * scale, out.slack[size_t(r)] = slack * scale;
    }
    return out;
  }

  void sequence(int64_t d, int64_t b) {
    const Direction& w = w_[d];
    const bool backwards = d == 1 || p_.reverse;
    const int64_t n = g_.length[size_t(b)], H = p_.H, O = g_.O, width = g_.D * O;
    const float* h0 = h0_->data() + (d * p_.B + b) * O;
    Values h(h0, h0 + O), c, c_slack(static_cast<size_t>(H));
    if (c0_) c.assign(at(c0_) + (d * p_.B + b) * H, at(c0_) + (d * p_.B + b + 1) * H);
    for (int64_t s = 0; s < n; ++s) {
      const int64_t t = backwards ? n - 1 - s : s;
      const float* x = x_->data() + row(t, b, p_.I);
      Product a = times(w.ih, Values(x, x + p_.I), Values(size_t(p_.I)));
      Product r = times(w.hh, h, Values(size_t(O)));
      Values slack(static_cast<size_t>(H));
      for (size_t i = 0; i < a.value.size(); ++i) {
        if (p_.bias) a.value[i] += double(w.b_ih->data()[i]);
        if (p_.bias) r.value[i] += double(w.b_hh->data()[i]);
        slack[i % size_t(H)] += a.slack[i] + r.slack[i];
      }
      Product next{maths(a.value, r.value, h, c), slack};
      for (size_t u = 0; u < size_t(H); ++u) {
        // Slopes of the gates are at most 1, and what they multiply at most |c|, |h| or 1.
        if (c0_) c_slack[u] += (2 + std::fabs(c[u])) * slack[u];
        next.slack[u] = c0_ ? c_slack[u] + slack[u] : (2 + std::fabs(h[u % h.size()])) * slack[u];
      }
      if (p_.P) {
        Values open(next.slack);
        for (double& e : open) e += kClose;
        Product projected = times(w.hr, next.value, open);
        for (int64_t o = 0; o < O; ++o)
          for (int64_t u = 0; u < H; ++u)
            projected.slack[size_t(o)] +=
                next.slack[size_t(u)] * std::fabs(w.hr.at(o, u)) * double(w.hr.scales->data()[o]);
        next = projected;
      }
      const float* y = y_->data() + row(t, b, width) + d * O;
      compare("y", y, next);
      h.assign(y, y + O);
    }
    EXPECT(std::equal(h.begin(), h.end(), h_n_->data() + (d * p_.B + b) * O,
                      [](double e, float got) { return float(e) == got; }),
           "h_n is not the last y, " << describe(setup_));
    if (c0_) compare("c_n", at(c_n_) + (d * p_.B + b) * H, {c, c_slack});
  }

  Values maths(const Values& a, const Values& r, const Values& h, Values& c) const {
    const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
    const auto H = size_t(p_.H);
    Values out(H);
    for (size_t u = 0; u < H; ++u) {
      const auto sum = [&](size_t gate) { return a[gate * H + u] + r[gate * H + u]; };
      if (p_.cell == Cell::kElman) {
        out[u] = p_.activation == Activation::kTanh ? std::tanh(sum(0)) : std::fmax(sum(0), 0.0);
      } else if (p_.cell == Cell::kGru) {
        const double z = sigmoid(sum(1));
        out[u] = (1 - z) * std::tanh(a[2 * H + u] + sigmoid(sum(0)) * r[2 * H + u]) + z * h[u];
      } else {
        c[u] = sigmoid(sum(1)) * c[u] + sigmoid(sum(0)) * std::tanh(sum(2));
        out[u] = sigmoid(sum(3)) * std::tanh(c[u]);
      }
    }
    return out;
  }

  // Float32 maths on sums of a few units.
  static constexpr double kClose = 3e-6;

  void compare(const char* name, const float* got, const Product& expected) {
    for (size_t i = 0; i < expected.value.size(); ++i) {
      const double off = std::fabs(double(got[i]) - expected.value[i]);
      const double close = kClose * (1 + std::fabs(expected.value[i]));
      ++compared, open += expected.slack[i] > 0;
      if (expected.slack[i] == 0) worst = std::fmax(worst, off / close);
      EXPECT(off <= close + expected.slack[i],
             name << '[' << i << "] is off by " << off << ", " << describe(setup_));
    }
  }

  Problem p_;
  Geometry g_;
  Setup setup_;
  Random random_;
  Floats x_, h0_, c0_, y_, h_n_, c_n_;
  Bytes packed_, workspace_;
  Direction w_[2];
};

}  // namespace test
