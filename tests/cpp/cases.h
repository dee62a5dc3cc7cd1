// Random problems, and how one is compared with the reference.
#pragma once

#include <algorithm>

#include "engine.h"

namespace test {

// In units of the type's epsilon times an output's largest value, see expect_close(); about twice
// what is reached. Rounding errors of a chain of k multiply-adds grow like sqrt(k).
inline constexpr double kTolerance = 40;
inline double worst = 0;  // as a part of what is tolerated
inline int64_t cases = 0;

inline double tolerance(const Problem& p, const Geometry& g) {
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

inline Lengths draw_lengths(Random& random, int64_t B, int64_t T) {
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

}  // namespace test
