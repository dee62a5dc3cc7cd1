// Numbers of fewer bits against the scalar reference: bfloat16 and float16 forward and backward,
// 8-bit weights forward; and checkpoints, which change nothing.
#include "half.h"
#include "int8.h"

namespace {

using namespace test;

// In units of the format's epsilon times an output's largest value, see expect_close(); about twice
// what is reached. h is half an epsilon off at each step, and so are gradients between products.
constexpr double kTolerance = 8;
double worst = 0;  // as a part of what is tolerated
int64_t cases = 0;

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
  if (fastrnn::sizes(p).packs_as_used) {
    inference.change_forward = [](fastrnn::ForwardBuffers& b) { b.packed = nullptr; };
    inference.forward();
    EXPECT(same(inference.results().y, r.y), "weights not packed, " << describe(setup));
  }
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
    // Two rows, whose weights stay in 16 bits where nothing multiplies bfloat16.
    wide.problem.B = 2, wide.problem.H = 130;
    compare<T>(wide, 6);
    wide.problem.B = 1, wide.problem.H = 401, wide.problem.T = 1, wide.problem.I = 2100;
    compare<T>(wide, 4);
    // Some rows of which threads share the units.
    if (cell == Cell::kLstm) {
      wide.problem.T = 3, wide.problem.B = 5, wide.problem.I = 7, wide.problem.H = 521;
      compare<T>(wide, 7);
      wide.problem.T = 1;
    }
    // More rows than two tiles, and panels in parts.
    wide.problem.B = 40, wide.problem.I = 360, wide.problem.H = V + 4;
    compare<T>(wide, 5);
  }
}

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
    if (cell == Cell::kLstm) {
      p.B = 5, p.H = 730;
      Int8Run(p, {}, 4).check();
    }
    p.B = 40, p.T = 1, p.I = 720, p.H = V + 4;  // as above
    Int8Run(p, {}, 3).check();
  }
  using Run = Int8Run;
  EXPECT(Run::open * 5 < Run::compared,
         Run::open << " of " << Run::compared << " results are held to little");
  worst = Run::worst, cases = Run::cases;
  Run::compared = Run::open = Run::cases = 0, Run::worst = 0;
}

// The same bits from checkpoints as from a whole reserve.
void compare_checkpoints(Setup s, uint64_t seed) {
  Problem& p = s.problem;
  p.training = true;
  const Geometry g(p, s.lengths);
  const Inputs in = make_inputs(p, g, s.given, seed);
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

void checkpoints(const std::string& isa) {
  const int64_t V = vector_width<float>(isa);
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
    Random random(4000 + uint64_t(cell));
    for (int i = 0; i < (quick() ? 6 : 40); ++i) {
      Setup s = draw(random, cell, random.pick(std::vector<int64_t>{1, V - 1, V + 1, 5 * V}), V);
      Problem& p = s.problem;
      p.T = random.pick(std::vector<int64_t>{1, 3, 7, 12});
      if (p.ragged) s.lengths = draw_lengths(random, p.B, p.T);
      compare_checkpoints(s, random.bits());
    }
    // Of LSTM and GRU more than 2 MiB of W_hh, whose units threads share.
    Setup wide;
    Problem& p = wide.problem;
    p.cell = cell, p.threads = 2, p.T = 5, p.B = 3, p.I = 7, p.H = 425;
    wide.lengths = {5, 5, 2}, p.ragged = true;
    compare_checkpoints(wide, random.bits());
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
