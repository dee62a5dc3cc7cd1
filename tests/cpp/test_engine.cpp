// forward() and backward() of every cell, type and ISA against the scalar reference, over odd
// sizes, directions, layouts, packed batches and absent buffers.
#include <algorithm>

#include "engine.h"

namespace {

using namespace test;

// In units of the type's epsilon times an output's largest value, see expect_close(); about twice
// what is reached. Rounding errors of a chain of k multiply-adds grow like sqrt(k).
constexpr double kTolerance = 40;
double worst = 0;  // as a part of what is tolerated
int64_t cases = 0;

double tolerance(const Problem& p, const Geometry& g) {
  const double longest = double(std::max({p.I, g.O, g.G * p.H}));
  return kTolerance * std::fmax(1, std::sqrt(longest) / 16);
}

template <class T>
void compare(Setup setup, uint64_t seed) {
  Problem& p = setup.problem;
  p.training = true;
  const Geometry g(p, setup.lengths);
  Outputs expected;
  Inputs in;
  // Near relu's kink the engine may rightly take the other side.
  do {
    in = make_inputs(p, g, setup.given, seed++);
    expected = Reference(p, g, in).run(true);
  } while (p.activation == Activation::kRelu && expected.kink < 1e-5);

  const double limit = tolerance(p, g);
  const auto forward = [&](const Results<T>& r) {
    expect_close("y", r.y, expected.y, limit, worst, setup);
    expect_close("h_n", r.h_n, expected.h_n, limit, worst, setup);
    expect_close("c_n", r.c_n, expected.c_n, limit, worst, setup);
  };
  Engine<T> engine(setup, g, in);
  engine.forward();
  engine.backward();
  const Results<T> r = engine.results();
  forward(r);
  if (!(setup.unwanted & kDx)) expect_close("dx", r.dx, expected.dx, limit, worst, setup);
  if (!(setup.unwanted & kDh0)) expect_close("dh0", r.dh0, expected.dh0, limit, worst, setup);
  if (!(setup.unwanted & kDc0)) expect_close("dc0", r.dc0, expected.dc0, limit, worst, setup);
  static const char* const kNames[] = {"dw_ih", "dw_hh", "db_ih", "db_hh", "dw_hr"};
  for (int64_t d = 0; d < g.D; ++d)
    for (int i = 0; i < 5; ++i) {
      if (setup.unwanted & kWeight << i || (!p.bias && (i == 2 || i == 3))) continue;
      expect_close(kNames[i], r.dw[d][i], expected.dw[d][i], limit, worst, setup);
    }
  engine.expect_clean();

  p.training = false;
  setup.unwanted = kAllGradients;
  Engine<T> inference(setup, g, in);
  inference.forward();
  forward(inference.results());
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

template <class T>
Setup draw(Random& random, Cell cell, int64_t H, int64_t V) {
  Setup s;
  Problem& p = s.problem;
  p.cell = cell, p.dtype = kDtype<T>, p.H = H;
  p.T = random.pick(std::vector<int64_t>{1, 2, 3, 5, 11});
  p.B = random.pick(std::vector<int64_t>{1, 1, 2, 3, 4, 5, 7, 13, 25});
  p.I = random.pick(std::vector<int64_t>{1, V - 1, V, V + 1, 3 * V + 2, 4 * V + 1, 9 * V - 1});
  if (p.I == 0) p.I = 1;
  if (cell == Cell::kElman && random.coin()) p.activation = Activation::kRelu;
  if (cell == Cell::kLstm && H > 1 && random.coin()) p.P = 1 + random.below(H - 1);
  p.directions = random.coin() ? 2 : 1;
  p.reverse = p.directions == 1 && random.coin();
  p.bias = random.below(4) > 0;
  p.threads = 1 + int(random.below(4));
  if (random.below(3) == 0) s.lengths = draw_lengths(random, p.B, p.T), p.ragged = true;
  if (p.ragged && random.coin()) draw_table(s, random);
  s.layout = Layout(random.below(4));
  Given& g = s.given;
  for (bool* given : {&g.h0, &g.c0, &g.dy, &g.dh_n, &g.dc_n}) *given = random.below(4) > 0;
  s.unwanted = random.coin() ? 0 : random.bits() & kAllGradients;
  return s;
}

template <class T>
void random_cases(Cell cell, const std::string& isa) {
  const int64_t V = vector_width<T>(isa);
  Random random(1000 + uint64_t(cell));
  for (int64_t H :
       {int64_t(1), V - 1, V, V + 1, 2 * V, 2 * V + 1, 4 * V, 4 * V + 1, 8 * V + 3, 13 * V})
    for (int i = 0; H > 0 && i < (quick() ? 4 : 16); ++i)
      compare<T>(draw<T>(random, cell, H, V), random.bits());
}

// One case of each kind that random sizes would rarely reach.
template <class T>
void large_cases(Cell cell, const std::string& isa) {
  const int64_t V = vector_width<T>(isa);
  const int threads = 3;
  Setup s;
  Problem& p = s.problem;
  p.cell = cell, p.dtype = kDtype<T>, p.threads = threads;
  const auto set = [&](int64_t T_, int64_t B, int64_t I, int64_t H, int64_t P, int directions) {
    p.T = T_, p.B = B, p.I = I, p.H = H, p.directions = directions;
    p.P = cell == Cell::kLstm ? P : 0;
    s.lengths.clear(), s.table.clear(), p.ragged = false;
  };
  Random random(7);
  // Steps of more than one chunk of 256 rows; blocks of steps of all counts; many threads' rows.
  set(3, 257, 3, V + 1, 0, 2), compare<T>(s, 1);
  set(2, 520, V, 2 * V - 1, V, 1), compare<T>(s, 2);
  set(70, 11, 5, V + 1, 2, 2), compare<T>(s, 3);
  set(61, 9, V + 2, 4 * V + 1, 0, 2), s.lengths = draw_lengths(random, p.B, p.T), compare<T>(s, 4);
  set(5, 300, 4, V, 1, 2), s.lengths = draw_lengths(random, p.B, p.T), compare<T>(s, 5);
  set(5, 300, 4, V, 1, 2), s.lengths = draw_lengths(random, p.B, p.T), p.ragged = true;
  draw_table(s, random), compare<T>(s, 5);
  set(300, 1, 6, 9 * V, 2, 2), compare<T>(s, 6);
  // A single sequence of which threads share the units: more than 1 MiB of W_hh.
  int64_t H = 1;
  while (gate_count(cell) * H * (H - 2) * int64_t(sizeof(T)) <= 1 << 20) ++H;
  set(9, 1, 7, H, H - 2, 1), compare<T>(s, 10);
  p.reverse = true, s.lengths = {9}, p.ragged = true, compare<T>(s, 11);
  p.reverse = false;
  if (quick()) return;
  // Products longer than a part of a panel that stays in L2: input, backward, recurrent.
  const int64_t limit = (256 << 10) / (4 * V * int64_t(sizeof(T))), gates = gate_count(cell);
  set(2, 13, limit * 4 / gates + 5, V + 1, 0, 1), compare<T>(s, 7);
  set(2, 13, 3, limit / gates + 3, limit / gates - 1, 1);
  if (p.H < 1200) compare<T>(s, 8);
  set(2, 13, 3, limit * 4 / gates + 7, 0, 1);
  if (p.H < 1500) compare<T>(s, 9);
}

// Without inputs; products of length 0 must end.
template <class T>
void empty_inputs() {
  alarm(60);
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
    Setup s;
    s.problem.cell = cell, s.problem.dtype = kDtype<T>;
    s.problem.T = 4, s.problem.B = 3, s.problem.I = 0, s.problem.H = 5;
    compare<T>(s, 1);
    s.problem.directions = 2, s.lengths = {4, 2, 1}, s.problem.ragged = true;
    compare<T>(s, 2);
  }
  alarm(0);
}

template <class T>
void all_cells(const std::string& isa) {
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
    random_cases<T>(cell, isa);
    large_cases<T>(cell, isa);
  }
}

// The reference's own gradients against central differences of a weighted sum of all outputs.
void check_reference(const Setup& setup) {
  const Problem& p = setup.problem;
  const Geometry g(p, setup.lengths);
  Inputs in = make_inputs(p, g, setup.given, 5);
  Outputs out = Reference(p, g, in).run(true);
  const auto dot = [](const Values& a, const Values& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
  };
  const auto loss = [&] {
    const Outputs o = Reference(p, g, in).run(false);
    return dot(o.y, in.dy) + dot(o.h_n, in.dh_n) + dot(o.c_n, in.dc_n);
  };
  const auto check = [&](const char* name, Values& values, const Values& gradient) {
    for (size_t i = 0; i < values.size(); ++i) {
      constexpr double kStep = 1e-5;
      const double kept = values[i];
      values[i] = kept + kStep;
      const double high = loss();
      values[i] = kept - kStep;
      const double slope = (high - loss()) / (2 * kStep);
      values[i] = kept;
      EXPECT(std::fabs(slope - gradient[i]) < 1e-8 * (1 + std::fabs(slope)),
             "reference's " << name << '[' << i << "] is " << gradient[i] << ", differences say "
                            << slope << ", " << describe(setup));
    }
  };
  check("x", in.x, out.dx), check("h0", in.h0, out.dh0), check("c0", in.c0, out.dc0);
  static const char* const kNames[] = {"w_ih", "w_hh", "b_ih", "b_hh", "w_hr"};
  for (int64_t d = 0; d < g.D; ++d)
    for (int i = 0; i < 5; ++i) check(kNames[i], in.w[d][i], out.dw[d][i]);
}

void check_references() {
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru})
    for (int variant = 0; variant < 2; ++variant) {
      Setup s;
      s.problem.cell = cell;
      s.problem.T = 4, s.problem.B = 3, s.problem.I = 2, s.problem.H = 3;
      s.problem.directions = 2 - variant, s.problem.reverse = variant;
      if (variant) s.lengths = {4, 2, 1}, s.problem.ragged = true;
      if (variant && cell == Cell::kLstm) s.problem.P = 2;
      if (variant && cell == Cell::kElman) s.problem.activation = Activation::kRelu;
      check_reference(s);
    }
}

}  // namespace

int main() {
  check_references();
  std::printf("the reference's gradients agree with differences: %lld values\n",
              static_cast<long long>(checked));
  for (const std::string& isa : fastrnn::available_isas()) {
    fastrnn::set_isa(isa);
    for (int dtype = 0; dtype < 2; ++dtype) {
      worst = 0, cases = 0;
      dtype ? all_cells<double>(isa) : all_cells<float>(isa);
      std::printf("%s float%d: %lld cases, the worst error is %.2f of the tolerance\n", isa.c_str(),
                  dtype ? 64 : 32, static_cast<long long>(cases), worst);
    }
  }
  std::fflush(stdout);
  for (const std::string& isa : fastrnn::available_isas()) {
    fastrnn::set_isa(isa);
    empty_inputs<float>();
    empty_inputs<double>();
  }
  std::printf("layers without inputs\n");
  return finish("test_engine");
}
