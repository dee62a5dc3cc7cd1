// The arithmetic contract, bit for bit: results do not depend on the number of threads, on a
// sequence's companions, on which gradients are wanted, on a repeated call or on an earlier packed
// copy; and sums over rows restart often enough to stay accurate.
#include <algorithm>

#include "engine.h"

namespace {

using namespace test;

template <class T>
bool equal(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
}

template <class T>
Results<T> run(const Setup& setup, const Geometry& g, const Inputs& in) {
  Engine<T> engine(setup, g, in);
  engine.forward();
  engine.backward();
  engine.expect_clean();
  return engine.results();
}

// Everything, but for the gradients whose bit is in `except`.
template <class T>
void expect_equal(const Results<T>& a, const Results<T>& b, unsigned except, const char* why,
                  const Setup& setup) {
  const auto check = [&](const char* name, const std::vector<T>& u, const std::vector<T>& v) {
    EXPECT(equal(u, v), name << " depends on " << why << ", " << describe(setup));
  };
  check("y", a.y, b.y), check("h_n", a.h_n, b.h_n), check("c_n", a.c_n, b.c_n);
  check("reserve", a.reserve, b.reserve);
  if (!(except & kDx)) check("dx", a.dx, b.dx);
  if (!(except & kDh0)) check("dh0", a.dh0, b.dh0);
  if (!(except & kDc0)) check("dc0", a.dc0, b.dc0);
  static const char* const kNames[] = {"dw_ih", "dw_hh", "db_ih", "db_hh", "dw_hr"};
  for (int d = 0; d < setup.problem.directions; ++d)
    for (int i = 0; i < 5; ++i)
      if (!(except & kWeight << i)) check(kNames[i], a.dw[d][i], b.dw[d][i]);
}

template <class T>
void check_threads(Setup setup, const Geometry& g, const Inputs& in, const Results<T>& expected) {
  for (int threads : {1, 2, 3, 4}) {
    setup.problem.threads = threads;
    expect_equal(run<T>(setup, g, in), expected, 0, "threads or run", setup);
  }
}

template <class T>
void check_unwanted(Setup setup, const Geometry& g, const Inputs& in, const Results<T>& expected) {
  for (unsigned bit = 0; bit <= 8; ++bit) {
    setup.unwanted = bit < 8 ? 1u << bit : kAllGradients;
    expect_equal(run<T>(setup, g, in), expected, setup.unwanted, "unwanted gradients", setup);
  }
}

template <class T>
void check_repack(Setup setup, const Geometry& g, const Inputs& in, const Results<T>& expected) {
  Engine<T> engine(setup, g, in);
  engine.forward();
  const auto packed = engine.packed();
  engine.forward(false, false);
  EXPECT(packed == engine.packed(), "repack = false wrote to packed, " << describe(setup));
  engine.backward();
  expect_equal(engine.results(), expected, 0, "packing anew", setup);
  // What training keeps changes nothing.
  setup.problem.training = false, setup.unwanted = kAllGradients;
  Engine<T> inference(setup, g, in);
  inference.forward();
  const Results<T> r = inference.results();
  EXPECT(equal(r.y, expected.y) && equal(r.h_n, expected.h_n) && equal(r.c_n, expected.c_n),
         "y, h_n or c_n depends on training, " << describe(setup));
}

// Weights that are packed as they are used.
template <class T>
void check_unpacked(Setup setup, const Geometry& g, const Inputs& in, const Results<T>& expected) {
  for (int threads : {1, 3}) {
    setup.problem.threads = threads;
    const bool possible = fastrnn::sizes(setup.problem).packs_as_used;
    EXPECT(possible || setup.problem.T > 1 || threads > 1, "one thread, " << describe(setup));
    if (!possible) continue;
    Engine<T> engine(setup, g, in);
    engine.change_forward = [](fastrnn::ForwardBuffers& b) { b.packed = nullptr; };
    engine.forward();
    engine.backward();
    expect_equal(engine.results(), expected, 0, "weights not packed", setup);
    engine.expect_clean();
  }
}

// The sequences [begin, end) of a batch, as a problem of its own.
struct Part {
  Part(const Setup& whole, const Geometry& g, const Inputs& in, int64_t begin, int64_t end)
      : setup(whole), first(begin) {
    Problem& p = setup.problem;
    p.B = end - begin, p.T = g.length[size_t(begin)];
    if (!whole.lengths.empty())
      setup.lengths.assign(whole.lengths.begin() + begin, whole.lengths.begin() + end);
    // A packed batch's sequence alone is a dense one.
    if (p.B == 1) setup.lengths.clear();
    p.ragged = !setup.lengths.empty();
    const Geometry part(p, setup.lengths);
    inputs = in;
    inputs.x = rows(in.x, g, part, p.I), inputs.dy = rows(in.dy, g, part, g.D * g.O);
    inputs.h0 = states(in.h0, g, whole.problem.B, g.O);
    inputs.dh_n = states(in.dh_n, g, whole.problem.B, g.O);
    if (!in.c0.empty()) {
      inputs.c0 = states(in.c0, g, whole.problem.B, p.H);
      inputs.dc_n = states(in.dc_n, g, whole.problem.B, p.H);
    }
  }
  template <class V>
  V rows(const V& from, const Geometry& g, const Geometry& part, int64_t n) const {
    V to;
    for (int64_t t = 0; t < setup.problem.T; ++t)
      for (int64_t b = 0; b < part.row(t + 1, 0) - part.row(t, 0); ++b) {
        const auto at = from.begin() + g.row(t, first + b) * n;
        to.insert(to.end(), at, at + n);
      }
    return to;
  }
  template <class V>
  V states(const V& from, const Geometry& g, int64_t B, int64_t n) const {
    V to;
    for (int64_t d = 0; d < g.D && !from.empty(); ++d) {
      const auto at = from.begin() + (d * B + first) * n;
      to.insert(to.end(), at, at + setup.problem.B * n);
    }
    return to;
  }

  Setup setup;
  Inputs inputs;
  int64_t first;
};

template <class T>
void check_companions(const Setup& setup, const Geometry& g, const Inputs& in,
                      const Results<T>& expected) {
  const int64_t B = setup.problem.B, H = setup.problem.H;
  for (int64_t size : {int64_t(1), int64_t(2), int64_t(5)})
    for (int64_t begin = 0; begin + size <= B; begin += std::max(size, B / 4)) {
      const Part part(setup, g, in, begin, begin + size);
      const Geometry small(part.setup.problem, part.setup.lengths);
      const Results<T> r = run<T>(part.setup, small, part.inputs);
      const auto check = [&](const char* name, const std::vector<T>& a, const std::vector<T>& b) {
        EXPECT(equal(a, b), name << " of sequences " << begin << " to " << begin + size
                                 << " depends on the others, " << describe(setup));
      };
      check("y", r.y, part.rows(expected.y, g, small, g.D * g.O));
      check("dx", r.dx, part.rows(expected.dx, g, small, setup.problem.I));
      check("h_n", r.h_n, part.states(expected.h_n, g, B, g.O));
      check("dh0", r.dh0, part.states(expected.dh0, g, B, g.O));
      check("c_n", r.c_n, part.states(expected.c_n, g, B, H));
      check("dc0", r.dc0, part.states(expected.dc0, g, B, H));
    }
}

// The weights' gradients of each sequence, asked for together, are those of a call of its own.
template <class T>
void check_samples(Setup setup, const Geometry& g, const Inputs& in, const Results<T>& expected) {
  if (!setup.lengths.empty()) return;
  const int64_t B = setup.problem.samples = setup.problem.B;
  const Results<T> all = run<T>(setup, g, in);
  expect_equal(all, expected, 0xff & ~(kWeight - 1), "samples", setup);
  for (int64_t b = 0; b < B; b += std::max(int64_t(1), B / 4)) {
    const Part part(setup, g, in, b, b + 1);
    Setup own = part.setup;
    own.problem.samples = 1;
    const Results<T> alone = run<T>(own, Geometry(own.problem, own.lengths), part.inputs);
    for (int d = 0; d < setup.problem.directions; ++d)
      for (int i = 0; i < 5; ++i) {
        const std::vector<T>& from = all.dw[d][i];
        const int64_t n = int64_t(from.size()) / B;
        EXPECT(equal(alone.dw[d][i], {from.begin() + b * n, from.begin() + (b + 1) * n}),
               "gradient " << i << " of sample " << b << " depends on the others, "
                           << describe(setup));
      }
  }
}

// A sequence of NaN leaves the others as they are.
template <class T>
void check_nan(const Setup& setup, const Geometry& g, const Inputs& in,
               const Results<T>& expected) {
  const int64_t bad = setup.problem.B / 2, I = setup.problem.I;
  Inputs poisoned = in;
  for (int64_t t = 0; t < g.length[size_t(bad)]; ++t)
    std::fill_n(poisoned.x.begin() + g.row(t, bad) * I, I, NAN);
  const Results<T> r = run<T>(setup, g, poisoned);
  for (const auto& [begin, end] :
       {std::pair(int64_t(0), bad), std::pair(bad + 1, setup.problem.B)}) {
    if (begin == end) continue;
    const Part part(setup, g, in, begin, end);
    const Geometry small(part.setup.problem, part.setup.lengths);
    const int64_t n = g.D * g.O;
    EXPECT(equal(part.rows(r.y, g, small, n), part.rows(expected.y, g, small, n)) &&
               equal(part.rows(r.dx, g, small, I), part.rows(expected.dx, g, small, I)) &&
               equal(part.states(r.dh0, g, setup.problem.B, g.O),
                     part.states(expected.dh0, g, setup.problem.B, g.O)),
           "NaN spreads to other sequences, " << describe(setup));
  }
  const T first = r.y[size_t(g.row(0, bad) * g.D * g.O)];
  EXPECT(std::isnan(first), "NaN was lost, " << describe(setup));
}

template <class T>
void check_all(Setup setup, uint64_t seed) {
  setup.problem.dtype = kDtype<T>, setup.problem.training = true;
  setup.problem.ragged = !setup.lengths.empty();
  const Geometry g(setup.problem, setup.lengths);
  const Inputs in = make_inputs(setup.problem, g, setup.given, seed);
  setup.problem.threads = 1;
  const Results<T> expected = run<T>(setup, g, in);
  check_threads(setup, g, in, expected);
  setup.problem.threads = 3;
  check_unwanted(setup, g, in, expected);
  check_repack(setup, g, in, expected);
  if (setup.problem.T <= 4) check_unpacked(setup, g, in, expected);
  check_companions(setup, g, in, expected);
  check_samples(setup, g, in, expected);
  check_nan(setup, g, in, expected);
}

// db is a sum of rows, dw_ih of rows times x = 1: of 0.1, whose rounding errors in one long chain
// all have the same sign. n rows in chunks of 256 are off by at most (255 + n / 256) eps / 2. The
// sum of a bias takes parts of 32 rows and keeps what rounding loses from chunk to chunk: it is off
// by 5 eps / 2, and would be by 40 without what is kept.
void check_long_sums(int64_t T_, int64_t B, bool reverse) {
  Setup s;
  Problem& p = s.problem;
  p.cell = Cell::kElman, p.activation = Activation::kRelu, p.training = true;
  p.T = T_, p.B = B, p.I = 1, p.H = 3, p.threads = 2, p.reverse = reverse;
  const Geometry g(p, s.lengths);
  Inputs in = make_inputs(p, g, s.given, 1);
  for (Values* v : {&in.x, &in.w[0][2]}) std::fill(v->begin(), v->end(), 1.0);
  for (Values* v : {&in.w[0][0], &in.w[0][1], &in.w[0][3]}) std::fill(v->begin(), v->end(), 0.0);
  std::fill(in.dy.begin(), in.dy.end(), double(0.1f));
  std::fill(in.dh_n.begin(), in.dh_n.end(), 0.0);
  const Results<float> r = run<float>(s, g, in);
  const double n = double(T_ * B), exact = n * double(0.1f);
  for (int i : {0, 2, 3})
    for (float sum : r.dw[0][i]) {
      const double limit = (i == 0 ? 255 + std::ceil(n / 256) : 12) * 0x1p-24;
      const double error = std::fabs(double(sum) / exact - 1);
      EXPECT(error <= limit, "a sum over " << n << " rows is off by " << error << ", limit "
                                           << limit << ", " << describe(s));
    }
}

// More than so many MiB of W_hh, P being H - `less`, where there is one.
template <class T>
int64_t shared_units(Cell cell, int64_t MiB, int64_t less = 0) {
  int64_t H = 1;
  while (gate_count(cell) * H * (H - less) * int64_t(sizeof(T)) <= MiB << 20) ++H;
  return H;
}

template <class T>
void check_cells(const std::string& isa) {
  const int64_t V = vector_width<T>(isa);
  Random random(11);
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
    Setup s;
    Problem& p = s.problem;
    p.cell = cell;
    // More work than what stays on one thread, and an odd H.
    const auto enlarge = [&] {
      p.H = 2 * V + 1;
      while (p.T * p.B * p.H * (p.I + p.H) * p.directions < 1100000) p.H += V;
    };
    p.T = 43, p.B = 13, p.I = 19, p.directions = 2, enlarge();
    s.layout = Layout::kBatchFirst;
    check_all<T>(s, 1);
    for (int64_t b = 0; b < p.B; ++b) s.lengths.push_back(1 + random.below(p.T));
    std::sort(s.lengths.rbegin(), s.lengths.rend());
    s.lengths[0] = p.T;
    if (cell == Cell::kLstm) p.P = V + 1;
    if (cell == Cell::kElman) p.activation = Activation::kRelu;
    check_all<T>(s, 2);
    // One step, of an odd number of panels, the last one narrow: up to six rows read the weights as
    // they lie, more of them read panels.
    p.T = 1, s.lengths.clear();
    for (int64_t B : {1, 2, 3, 4, 5, 6, 7, 29}) {
      p.B = B, p.H = 8 * V + 1;
      check_all<T>(s, 6);
    }
    if (test::quick()) continue;
    p.T = 3, p.B = 300, p.directions = 1, p.reverse = true, s.lengths.clear();
    p.P = 0, p.activation = Activation::kTanh, enlarge(), s.layout = Layout::kPaddedRows;
    check_all<T>(s, 3);
    p.T = 301, p.B = 2, p.reverse = false, enlarge(), s.layout = Layout::kTimeMajor;
    check_all<T>(s, 4);
    // A single sequence of which threads share the units.
    p.T = 21, p.B = 1, p.H = shared_units<T>(cell, 1), s.layout = Layout::kPaddedRowsAndSteps;
    check_all<T>(s, 5);
    p.T = 1, p.I = 1100000 / p.H;  // enough work for several threads
    check_all<T>(s, 7);
    p.dtype = kDtype<T>, p.threads = 3;
    EXPECT(fastrnn::sizes(p).packs_as_used, "threads share panels, " << describe(s));
    // A few sequences of which they do, in one step and in several, of which some have ended.
    p.B = 9, p.I = 11, p.H = shared_units<T>(cell, 2), p.threads = 2;
    EXPECT(fastrnn::sizes(p).packs_as_used, "threads share panels, " << describe(s));
    if (cell == Cell::kLstm) check_all<T>(s, 9);
    p.T = 5, s.lengths = {5, 4, 4, 3, 3, 2, 1, 1, 1};
    p.H = shared_units<T>(cell, 2, 2), p.P = cell == Cell::kLstm ? p.H - 2 : 0;
    check_all<T>(s, 10);
    p.P = 0;
    // Few steps of few rows, of which some have ended.
    p.T = 3, p.B = 2, p.I = 7, s.lengths = {3, 1}, enlarge();
    check_all<T>(s, 8);
    p.dtype = kDtype<T>, p.threads = 1;
    EXPECT(fastrnn::sizes(p).packs_as_used, "few rows, " << describe(s));
  }
}

}  // namespace

int main() {
  for (const std::string& isa : fastrnn::available_isas()) {
    fastrnn::set_isa(isa);
    check_cells<float>(isa);
    check_cells<double>(isa);
    check_long_sums(32, 2048, false);
    check_long_sums(10000, 7, false);
    check_long_sums(65536, 1, true);
    std::printf("%s: threads, runs, companions, NaN, unwanted gradients, repack, long sums\n",
                isa.c_str());
  }
  return finish("test_contract");
}
