// forward() and backward() of every cell, type and ISA against the scalar reference, over odd
// sizes, directions, layouts, packed batches and absent buffers.
#include "cases.h"

namespace {

using namespace test;

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
  // Sequences of which threads share the units: one with more than 1 MiB of W_hh, some with 2.
  int64_t H = 1;
  while (gate_count(cell) * H * (H - 2) * int64_t(sizeof(T)) <= 1 << 20) ++H;
  set(9, 1, 7, H, H - 2, 1), compare<T>(s, 10);
  p.reverse = true, s.lengths = {9}, p.ragged = true, compare<T>(s, 11);
  while (gate_count(cell) * H * (H - 2) * int64_t(sizeof(T)) <= 2 << 20) ++H;
  p.threads = 2;
  set(3, 5, 7, H, 0, 1), compare<T>(s, 13);
  p.reverse = false;
  set(4, 3, 7, H, H - 2, 1), s.lengths = {4, 3, 1}, p.ragged = true, compare<T>(s, 14);
  p.threads = threads;
  // Products longer than a part of a panel that stays in L2: input, backward, recurrent.
  const int64_t limit = (256 << 10) / (4 * V * int64_t(sizeof(T))), gates = gate_count(cell);
  set(2, 13, limit * 4 / gates + 5, V + 1, 0, 1), compare<T>(s, 7);
  set(1, 7, limit * 4 / gates + 5, V + 1, 0, 1), compare<T>(s, 12);
  if (quick()) return;
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
