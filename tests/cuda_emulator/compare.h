// A layer on the emulated GPU against the scalar reference, under every schedule.
#pragma once

#include <algorithm>

#include "layer.h"

// engine.h describes cases by the instruction set in use.
namespace fastrnn {
const char* isa() { return "emulated"; }
}  // namespace fastrnn

namespace test {

// In units of the format's epsilon times an output's largest value, see expect_close(); about twice
// what is reached.
template <class T>
double tolerance_of(const Problem& p, const Geometry& g, bool tf32) {
  if (sizeof(T) == 2) return 8;  // h and the gates' gradients are rounded at each step
  const double plain = 40 * std::fmax(1, std::sqrt(double(g.G * p.H)) / 16);
  constexpr double kTf32 = 8192;  // epsilons of float32 in one of TF32
  return tf32 ? 6 * kTf32 : plain;
}

inline void use_schedule(emulator::Schedule schedule, uint64_t seed) {
  emulator::settings.schedule = schedule, emulator::settings.seed = seed;
  if (const char* replay = std::getenv("FASTRNN_EMULATOR")) {
    const std::string text = replay;
    for (emulator::Schedule s : emulator::kSchedules) {
      emulator::settings.schedule = s;
      const std::string name = emulator::describe_schedule();
      if (text.compare(0, text.find(' '), name, 0, name.find(' ')) == 0) break;
    }
    emulator::settings.seed = std::strtoull(text.c_str() + text.find(' '), nullptr, 10);
  }
}

template <class T>
void round_inputs(Inputs& in) {
  const auto all = [](Values& values) {
    for (double& v : values) v = double(T(v));
  };
  for (Values* v : {&in.x, &in.h0, &in.c0, &in.dy, &in.dh_n, &in.dc_n}) all(*v);
  for (auto& w : in.w)
    for (Values& v : w) all(v);
}

// Small weights beside large biases: far from relu's kink, whose other side may rightly be taken.
inline void stay_off_the_kink(Inputs& in) {
  for (auto& w : in.w) {
    for (int i : {0, 1})
      for (double& v : w[i]) v *= 0.2;
    for (double& v : w[2]) v = v < 0 ? v - 3 : v + 3;
  }
}

struct Case {
  Setup setup;
  bool tf32 = false;
  gpu::Kernel kernel = gpu::Kernel::kStep;
};

template <class T>
void expect_as(const Case& c, const Geometry& g, const typename Layer<T>::Found& f,
               const Outputs& expected, bool gradients, double& worst) {
  const Setup& s = c.setup;
  const Problem& p = s.problem;
  const double limit = tolerance_of<T>(p, g, c.tf32);
  const auto check = [&](const char* name, const auto& got, const Values& wanted) {
    std::vector<T> stored;
    for (const auto& v : got) stored.push_back(static_cast<T>(double(v)));
    expect_close(name, stored, wanted, limit, worst, s);
  };
  check("y", f.y, expected.y), check("h_n", f.h_n, expected.h_n);
  check("c_n", f.c_n, expected.c_n);
  if (!gradients) return;
  check("dx", f.dx, expected.dx), check("dh0", f.dh0, expected.dh0);
  check("dc0", f.dc0, expected.dc0);
  static const char* const kNames[] = {"dw_ih", "dw_hh", "db_ih", "db_hh", "dw_hr"};
  for (int64_t d = 0; d < g.D; ++d)
    for (int i = 0; i < 5; ++i)
      if (p.bias || (i != 2 && i != 3)) check(kNames[i], f.dw[d][i], expected.dw[d][i]);
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
}

// Every schedule gives the same bits, and those are right. Returns y, for further comparisons.
template <class T>
typename Layer<T>::Found compare(Case c, uint64_t seed, double& worst,
                                 const std::vector<emulator::Schedule>& schedules) {
  Setup& setup = c.setup;
  Problem& p = setup.problem;
  p.training = true, p.dtype = kDtype<T>;
  const Geometry g(p, setup.lengths);
  Inputs in = make_inputs(p, g, setup.given, seed);
  if (p.activation == Activation::kRelu) stay_off_the_kink(in);
  round_inputs<T>(in);
  const Outputs expected = Reference(p, g, in).run(true);
  typename Layer<T>::Found first;
  for (size_t i = 0; i < schedules.size(); ++i) {
    use_schedule(schedules[i], seed + i);
    Layer<T> layer(setup, g, in, c.tf32, c.kernel);
    layer.forward();
    layer.backward();
    const auto found = layer.results(true);
    layer.expect_clean();
    if (i == 0) {
      first = found;
      expect_as<T>(c, g, first, expected, true, worst);
    } else {
      EXPECT(same_bits(found.y, first.y) && same_bits(found.dgates, first.dgates) &&
                 same_bits(found.dh0, first.dh0),
             "the schedule " << emulator::describe_schedule() << " changes the result, "
                             << describe(setup));
    }
  }
  p.training = false;
  Layer<T> inference(setup, g, in, c.tf32, c.kernel);
  inference.forward();
  EXPECT(same_bits(inference.results(false).y, first.y),
         "inference differs from training, " << describe(setup));
  inference.expect_clean();
  return first;
}

inline Lengths draw_lengths(Random& random, int64_t B, int64_t T) {
  Lengths lengths;
  for (int64_t b = 0; b < B; ++b) lengths.push_back(1 + random.below(T));
  std::sort(lengths.rbegin(), lengths.rend());
  lengths[0] = T;
  return lengths;
}

inline Case draw(Random& random, Cell cell, gpu::Kernel kernel) {
  Case c;
  c.kernel = kernel;
  Setup& s = c.setup;
  Problem& p = s.problem;
  p.cell = cell;
  p.H = random.pick(std::vector<int64_t>{1, 7, 8, 16, 17, 24, 33, 40, 64});
  p.T = random.pick(std::vector<int64_t>{1, 2, 3, 5});
  p.B = random.pick(std::vector<int64_t>{1, 2, 5, 8, 13, 17, 33});
  p.I = 1 + random.below(5);
  if (cell == Cell::kElman && random.coin()) p.activation = Activation::kRelu;
  if (cell == Cell::kLstm && p.H > 1 && random.coin()) p.P = 1 + random.below(p.H - 1);
  p.directions = random.coin() ? 2 : 1;
  p.reverse = p.directions == 1 && random.coin();
  p.bias = p.activation == Activation::kRelu || random.below(4) > 0;  // see stay_off_the_kink()
  if (random.below(3) == 0) s.lengths = draw_lengths(random, p.B, p.T), p.ragged = true;
  Given& g = s.given;
  for (bool* given : {&g.h0, &g.c0, &g.dy, &g.dh_n, &g.dc_n}) *given = random.below(4) > 0;
  return c;
}

}  // namespace test
