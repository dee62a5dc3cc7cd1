// Numbers of fewer bits against the scalar reference: bfloat16 and float16 forward and backward,
// 8-bit weights forward; and checkpoints, which change nothing.
#include "half.h"

namespace {

using namespace test;

// In units of the format's epsilon times an output's largest value, see expect_close(); about twice
// what is reached. h is half an epsilon off at each step, and so are gradients between products.
constexpr double kTolerance = 8;
double worst = 0;  // as a part of what is tolerated
int64_t cases = 0;
int64_t compared = 0, open = 0;  // of 8-bit results: all, and those that a rounding left open

void check_conversions() {
  const auto check = [](auto one, double v, double expected) {
    const double got = double(decltype(one)(v));
    EXPECT(got == expected, v << " is rounded to " << got << ", not to " << expected);
  };
  check(Bfloat16(), 1 + 1 / 256.0, 1), check(Bfloat16(), 1 + 3 / 256.0, 1 + 1 / 64.0);
  check(Bfloat16(), -3.0e38, -std::ldexp(226, 120)), check(Bfloat16(), 3.4e38, INFINITY);
  check(Float16(), 65504, 65504), check(Float16(), 65520, INFINITY);
  check(Float16(), 1 + 1 / 2048.0, 1), check(Float16(), 2047.5 / 1024, 2);
  check(Float16(), std::ldexp(3, -25), std::ldexp(2, -24)), check(Float16(), 0, 0);
  for (int i = 0; i < 0x7c00; ++i) {
    Float16 h;
    h.bits = static_cast<uint16_t>(i);
    EXPECT(Float16(double(h)).bits == i, "float16 " << i << " there and back");
  }
}

template <class T>
void round_to(Inputs& in) {
  const auto all = [](Values& values) {
    for (double& v : values) v = double(T(v));
  };
  for (Values* v : {&in.x, &in.h0, &in.c0, &in.dy, &in.dh_n, &in.dc_n}) all(*v);
  for (auto& w : in.w)
    for (Values& v : w) all(v);
}

// Far from relu's kink, where the engine may rightly take the other side: small weights beside
// large biases.
void stay_off_the_kink(Inputs& in) {
  for (auto& w : in.w) {
    for (int i : {0, 1})
      for (double& v : w[i]) v *= 0.2;
    for (double& v : w[2]) v = v < 0 ? v - 3 : v + 3;
  }
}

template <class T>
void compare(Setup setup, uint64_t seed) {
  Problem& p = setup.problem;
  p.dtype = kDtype<T>, p.training = true;
  const Geometry g(p, setup.lengths);
  Inputs in;
  Outputs expected;
  do {
    in = make_inputs(p, g, setup.given, seed++);
    if (p.activation == Activation::kRelu) stay_off_the_kink(in);
    round_to<T>(in);
    expected = Reference(p, g, in).run(true);
  } while (p.activation == Activation::kRelu && expected.kink < 0.5);

  const auto check = [&](const char* name, const std::vector<T>& got, const Values& true_values) {
    expect_close(name, got, true_values, kTolerance, worst, setup);
  };
  const auto forward = [&](const Results<T>& r) {
    check("y", r.y, expected.y), check("h_n", r.h_n, expected.h_n);
    check("c_n", r.c_n, expected.c_n);
  };
  const auto same = [](const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() &&
           std::equal(a.begin(), a.end(), b.begin(), [](T x, T y) { return x.bits == y.bits; });
  };
  Engine<T> engine(setup, g, in);
  engine.forward();
  engine.backward();
  const Results<T> r = engine.results();
  forward(r);
  if (!(setup.unwanted & kDx)) check("dx", r.dx, expected.dx);
  if (!(setup.unwanted & kDh0)) check("dh0", r.dh0, expected.dh0);
  if (!(setup.unwanted & kDc0)) check("dc0", r.dc0, expected.dc0);
  static const char* const kNames[] = {"dw_ih", "dw_hh", "db_ih", "db_hh", "dw_hr"};
  for (int64_t d = 0; d < g.D; ++d)
    for (int i = 0; i < 5; ++i) {
      if (setup.unwanted & kWeight << i || (!p.bias && (i == 2 || i == 3))) continue;
      check(kNames[i], r.dw[d][i], expected.dw[d][i]);
    }
  engine.expect_clean();

  p.training = false;
  setup.unwanted = kAllGradients;
  Engine<T> inference(setup, g, in);
  inference.forward();
  const Results<T> first = inference.results();
  EXPECT(same(first.y, r.y) && same(first.h_n, r.h_n) && same(first.c_n, r.c_n),
         "inference differs from training, " << describe(setup));
  inference.forward(false, false);
  EXPECT(same(inference.results().y, r.y), "the packed copy, " << describe(setup));
  inference.expect_clean();
  ++cases;
}

Lengths draw_lengths(Random& random, int64_t B, int64_t T) {
  Lengths lengths;
  for (int64_t b = 0; b < B; ++b) lengths.push_back(1 + random.below(T));
  std::sort(lengths.rbegin(), lengths.rend());
  lengths[0] = T;
  return lengths;
}

Setup draw(Random& random, Cell cell, int64_t H, int64_t V) {
  Setup s;
  Problem& p = s.problem;
  p.cell = cell, p.H = H;
  p.T = random.pick(std::vector<int64_t>{1, 2, 3, 5, 8});
  p.B = random.pick(std::vector<int64_t>{1, 1, 2, 3, 5, 7, 13, 25});
  p.I = random.pick(std::vector<int64_t>{1, 2, V - 1, V, V + 1, 2 * V + 1, 4 * V + 3});
  if (cell == Cell::kElman && random.coin()) p.activation = Activation::kRelu;
  if (cell == Cell::kLstm && H > 1 && random.coin()) p.P = 1 + random.below(H - 1);
  p.directions = random.coin() ? 2 : 1;
  p.reverse = p.directions == 1 && random.coin();
  p.bias = p.activation == Activation::kRelu || random.below(4) > 0;
  p.threads = 1 + int(random.below(3));
  if (random.below(3) == 0) s.lengths = draw_lengths(random, p.B, p.T), p.ragged = true;
  s.layout = Layout(random.below(4));
  Given& g = s.given;
  for (bool* given : {&g.h0, &g.c0, &g.dy, &g.dh_n, &g.dc_n}) *given = random.below(4) > 0;
  s.unwanted = random.coin() ? 0 : random.bits() & kAllGradients;
  return s;
}

template <class T>
void reduced(const std::string& isa) {
  const int64_t V = vector_width<float>(isa);
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
    Random random(2000 + uint64_t(cell));
    for (int64_t H : {int64_t(1), int64_t(2), V - 1, V, V + 1, 2 * V + 1, 4 * V, 5 * V + 3})
      for (int i = 0; i < (quick() ? 3 : 12); ++i)
        compare<T>(draw(random, cell, H, V), random.bits());
    // Steps of more than one chunk of 256 rows; the units of a single row shared by threads.
    Setup s;
    s.problem.cell = cell, s.problem.threads = 3, s.problem.directions = 2;
    s.problem.T = 2, s.problem.B = 259, s.problem.I = 5, s.problem.H = V + 1;
    s.problem.P = cell == Cell::kLstm ? V - 2 : 0;
    compare<T>(s, 1);
    s.lengths = draw_lengths(random, s.problem.B, s.problem.T), s.problem.ragged = true;
    compare<T>(s, 2);
    Setup wide;
    wide.problem.cell = cell, wide.problem.threads = 3;
    wide.problem.T = 3, wide.problem.I = 7, wide.problem.H = 401;
    compare<T>(wide, 3);
  }
}

// One forward pass with 8-bit weights, and a loop that rounds the operands' rows as it does.
//
// Each step starts from the h that the engine itself returned, so that an operand is rounded from
// the very same numbers. Where one of these is so close to halfway that its rounding is open, as is
// what a projection reads and nobody sees, the result may be off by what that is worth.
class Int8Run {
 public:
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

  void check() {
    forward(true);
    for (int64_t d = 0; d < g_.D; ++d)
      for (int64_t b = 0; b < p_.B; ++b) sequence(d, b);
    std::vector<float> before(y_->data(), y_->data() + y_->count());
    forward(false);
    EXPECT(!std::memcmp(before.data(), y_->data(), before.size() * sizeof(float)),
           "the packed copy, " << describe(setup_));
    for (auto* at : {&x_, &h0_, &c0_, &y_, &h_n_, &c_n_})
      EXPECT(!*at || (*at)->guards_intact(), "written outside a buffer, " << describe(setup_));
    for (auto* at : {&packed_, &workspace_})
      EXPECT((*at)->guards_intact(), "written outside memory, " << describe(setup_));
    for (int64_t r = 0, width = g_.D * g_.O; r + 1 < g_.N; ++r)
      for (int64_t i = 0; i < kGap; ++i)
        EXPECT(y_->untouched(r * (width + kGap) + width + i),
               "written between the rows, " << describe(setup_));
    ++cases;
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

  void forward(bool repack) {
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
    fastrnn::forward(p_, b);
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

void quantized(const std::string& isa) {
  const int64_t V = vector_width<float>(isa);
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
    Random random(3000 + uint64_t(cell));
    for (int64_t H : {int64_t(1), int64_t(2), V - 1, V, V + 1, 3 * V + 2, 9 * V + 1})
      for (int i = 0; i < (quick() ? 3 : 12); ++i) {
        Setup s = draw(random, cell, H, V);
        s.problem.bias = random.coin();
        Int8Run(s.problem, s.lengths, random.bits()).check();
      }
    Problem p;
    p.cell = cell, p.threads = 3, p.T = 2, p.B = 259, p.I = 5, p.H = V + 1, p.directions = 2;
    Int8Run(p, {}, 1).check();
    p.B = 1, p.T = 3, p.I = 7, p.H = 601, p.directions = 1;
    Int8Run(p, {}, 2).check();
  }
  EXPECT(open * 5 < compared, open << " of " << compared << " results are held to little");
  compared = open = 0;
}

// The same bits from checkpoints as from a whole reserve.
void checkpoints(const std::string& isa) {
  const int64_t V = vector_width<float>(isa);
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
    Random random(4000 + uint64_t(cell));
    for (int i = 0; i < (quick() ? 6 : 40); ++i) {
      Setup s = draw(random, cell, random.pick(std::vector<int64_t>{1, V - 1, V + 1, 5 * V}), V);
      Problem& p = s.problem;
      p.training = true, p.T = random.pick(std::vector<int64_t>{1, 3, 7, 12});
      if (p.ragged) s.lengths = draw_lengths(random, p.B, p.T);
      const Geometry g(p, s.lengths);
      const Inputs in = make_inputs(p, g, s.given, random.bits());
      const auto run = [&](int64_t every) {
        p.checkpoint_every = every;
        Engine<float> engine(s, g, in);
        engine.forward();
        engine.backward();
        engine.expect_clean();
        return engine.results();
      };
      const Results<float> whole = run(0);
      for (int64_t every : {1, 3, 100}) {
        const Results<float> found = run(every);
        const auto check = [&](const char* name, const std::vector<float>& a,
                               const std::vector<float>& b) {
          EXPECT(a.size() == b.size() &&
                     (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(float))),
                 name << " differs, " << describe(s));
        };
        check("y", found.y, whole.y), check("h_n", found.h_n, whole.h_n);
        check("c_n", found.c_n, whole.c_n), check("dx", found.dx, whole.dx);
        check("dh0", found.dh0, whole.dh0), check("dc0", found.dc0, whole.dc0);
        for (int64_t d = 0; d < g.D; ++d)
          for (int n = 0; n < 5; ++n) check("dw", found.dw[d][n], whole.dw[d][n]);
      }
      ++cases;
    }
  }
}

void report(const std::string& isa, const char* what) {
  std::printf("%s %s: %lld cases, the worst error is %.2f of the tolerance\n", isa.c_str(), what,
              static_cast<long long>(cases), worst);
  worst = 0, cases = 0;
}

}  // namespace

int main() {
  check_conversions();
  for (const std::string& isa : fastrnn::available_isas()) {
    fastrnn::set_isa(isa);
    reduced<Bfloat16>(isa), report(isa, "bfloat16");
    reduced<Float16>(isa), report(isa, "float16");
    quantized(isa), report(isa, "int8");
    checkpoints(isa), report(isa, "checkpoints");
  }
  return finish("test_formats");
}
