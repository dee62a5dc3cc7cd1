// second_order() against differences of forward() and backward() at inputs a little to both sides
// of a point, for every cell, instruction set and kind of batch.
#include <algorithm>

#include "engine.h"

namespace {

using namespace test;

constexpr double kStep = 1e-5;

struct Outcome {
  Values y, h_n, c_n, dgates, dh0, dc0, reserve;
};

Outcome run(const Setup& setup, const Geometry& g, const Inputs& in) {
  const Problem& p = setup.problem;
  const fastrnn::CellInfo info = fastrnn::cell_info(p.cell);
  Values dgates(static_cast<size_t>(g.N * (info.gradients + info.states) * p.H));
  Engine<double> engine(setup, g, in);
  engine.change_backward = [&](fastrnn::BackwardBuffers& b) { b.dgates = dgates.data(); };
  engine.forward(), engine.backward();
  const Results<double> r = engine.results();
  return {r.y, r.h_n, r.c_n, dgates, r.dh0, r.dc0, r.reserve};
}

// The point moved by `step` in direction v. What backward() begins with stays.
Inputs moved(const Inputs& point, const Inputs& v, double step) {
  Inputs in = point;
  const auto move = [&](Values& to, const Values& by) {
    for (size_t i = 0; i < to.size(); ++i) to[i] += step * by[i];
  };
  move(in.x, v.x), move(in.h0, v.h0), move(in.c0, v.c0);
  for (int i = 0; i < 5; ++i) move(in.w[0][i], v.w[0][i]);
  return in;
}

Values difference(const Values& high, const Values& low) {
  Values d(high.size());
  for (size_t i = 0; i < d.size(); ++i) d[i] = (high[i] - low[i]) / (2 * kStep);
  return d;
}

// rows (N, K) times w (M, K) transposed, plus b and `to`.
Values product(const Values& rows, const Values& w, const Values& b, int64_t M, int64_t K,
               Values to = {}) {
  const int64_t N = K ? int64_t(rows.size()) / K : int64_t(to.size()) / M;
  to.resize(size_t(N * M));
  for (int64_t n = 0; n < N; ++n)
    for (int64_t m = 0; m < M; ++m) {
      double sum = b.empty() ? 0 : b[size_t(m)];
      for (int64_t k = 0; k < K; ++k) sum += rows[size_t(n * K + k)] * w[size_t(m * K + k)];
      to[size_t(n * M + m)] += sum;
    }
  return to;
}

// The states before each row's step, of those after it and the initial ones.
Values before(const Problem& p, const Geometry& g, const Values& initial, const Values& after) {
  Values to(size_t(g.N * p.H));
  for (int64_t t = 0; t < p.T; ++t)
    for (int64_t b = 0; b < g.row(t + 1, 0) - g.row(t, 0); ++b) {
      const int64_t from = p.reverse ? t + 1 : t - 1;
      const bool first = from < 0 || from >= g.length[size_t(b)];
      const double* row = first ? initial.data() + b * p.H : after.data() + g.row(from, b) * p.H;
      std::copy(row, row + p.H, to.begin() + g.row(t, b) * p.H);
    }
  return to;
}

// Some slots of rows of `width` slots.
Values slots(const Values& from, int64_t width, int64_t H, const std::vector<int>& numbers) {
  Values to;
  for (int64_t n = 0; n < int64_t(from.size()) / (width * H); ++n)
    for (int i : numbers)
      to.insert(to.end(), from.begin() + (n * width + i) * H,
                from.begin() + (n * width + i + 1) * H);
  return to;
}

template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t n) : memory_(n) {}
  explicit Buffer(const Values& from) : memory_(int64_t(from.size())) {
    std::transform(from.begin(), from.end(), memory_.data(), [](double v) { return T(v); });
  }
  T* data() { return memory_.count() ? memory_.data() : nullptr; }
  void expect(const char* name, const Values& expected, double tolerance, const Setup& setup) {
    double error = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      const double e = std::fabs(double(memory_.data()[i]) - expected[i]);
      error = e <= error ? error : e;  // NaN is an error too
    }
    EXPECT(error <= tolerance, name << " is off by " << error << ", " << describe(setup));
    EXPECT(memory_.guards_intact(), name << " was written outside, " << describe(setup));
  }

 private:
  Guarded<T> memory_;
};

// `states_only`: v has no part of x and of the weights, and what would be zeros is null.
template <class T>
void check(Setup setup, bool states_only, uint64_t seed) {
  Problem& p = setup.problem;
  p.training = true;
  p.ragged = !setup.lengths.empty();
  const Geometry g(p, setup.lengths);
  const Inputs point = make_inputs(p, g, setup.given, seed);
  Inputs v = make_inputs(p, g, setup.given, seed + 1);
  if (states_only)
    for (Values* part : {&v.x, &v.w[0][0], &v.w[0][1], &v.w[0][2], &v.w[0][3]})
      std::fill(part->begin(), part->end(), 0);
  const Outcome at = run(setup, g, point);
  const Outcome high = run(setup, g, moved(point, v, kStep));
  const Outcome low = run(setup, g, moved(point, v, -kStep));

  const fastrnn::CellInfo info = fastrnn::cell_info(p.cell);
  const int64_t GH = g.G * p.H, kept = info.gradients + info.states;
  const bool lstm = info.states > 1;
  const Values(&w)[5] = point.w[0], (&vw)[5] = v.w[0];
  std::vector<int> own, recurrent(info.of_recurrent, info.of_recurrent + info.gates);
  for (int i = 0; i < info.gradients; ++i) own.push_back(i);
  const Values h = before(p, g, point.h0, at.y);
  const Values c =
      lstm ? before(p, g, point.c0, slots(at.reserve, info.saved, p.H, {info.state_slots[1]}))
           : Values();
  Values transposed(vw[1].size());
  for (int64_t i = 0; i < GH; ++i)
    for (int64_t j = 0; j < p.H; ++j) transposed[size_t(j * GH + i)] = vw[1][size_t(i * p.H + j)];
  const Values drh = slots(at.dgates, kept, p.H, recurrent);

  Buffer<T> w_hh(w[1]), wx(product(point.x, w[0], w[2], GH, p.I, Values(size_t(g.N * GH)))),
      rh(product(h, w[1], w[3], GH, p.H)), h_before(h), c_before(c), v_h0(v.h0), v_c0(v.c0),
      v_wx(product(point.x, vw[0], vw[2], GH, p.I,
                   product(v.x, w[0], {}, GH, p.I, Values(size_t(g.N * GH))))),
      v_rh(product(h, vw[1], vw[3], GH, p.H)), dgates(at.dgates),
      through(product(drh, transposed, {}, p.H, GH));
  Buffer<T> v_before(g.N * p.H), v_y(g.N * p.H), d(g.N * info.gradients * p.H), v_h(p.B * p.H),
      v_c(lstm * p.B * p.H), d_h0(p.B * p.H), d_c0(lstm * p.B * p.H);

  p.dtype = kDtype<T>;
  Guarded<unsigned char> workspace(int64_t(fastrnn::second_order_workspace(p, g.N)));
  std::memset(workspace.data(), 0xff, size_t(workspace.count()));  // NaN
  fastrnn::SecondOrderBuffers b;
  b.offsets = p.ragged ? g.offsets.data() : nullptr;
  b.w_hh = w_hh.data(), b.wx = wx.data(), b.rh = rh.data();
  b.before[0] = h_before.data(), b.before[1] = c_before.data();
  if (!states_only) b.v_wx = v_wx.data(), b.v_rh = v_rh.data(), b.through = through.data();
  b.v_initial[0] = v_h0.data(), b.v_initial[1] = v_c0.data();
  b.dgates = dgates.data();
  b.v_before = v_before.data(), b.v_y = v_y.data(), b.d = d.data();
  b.v_final[0] = v_h.data(), b.v_final[1] = v_c.data();
  b.d_initial[0] = d_h0.data(), b.d_initial[1] = d_c0.data();
  b.workspace = workspace.data();
  EXPECT(fastrnn::second_order(p, b), "stopped");

  const double tolerance = sizeof(T) == 8 ? 1e-7 : 1e-3;
  const Values y = difference(high.y, low.y);
  v_y.expect("v_y", y, tolerance, setup);
  v_before.expect("v_before", before(p, g, v.h0, y), tolerance, setup);
  v_h.expect("v_h", difference(high.h_n, low.h_n), tolerance, setup);
  d.expect("d", slots(difference(high.dgates, low.dgates), kept, p.H, own), tolerance, setup);
  d_h0.expect("d_h0", difference(high.dh0, low.dh0), tolerance, setup);
  v_c.expect("v_c", difference(high.c_n, low.c_n), tolerance, setup);
  d_c0.expect("d_c0", difference(high.dc0, low.dc0), tolerance, setup);
  EXPECT(workspace.guards_intact(), "written outside the workspace, " << describe(setup));
}

struct Shape {
  int64_t T, B, H;
  int threads;
};
// Threads share the work of the last one only: the others are too small.
constexpr Shape kShapes[] = {{6, 5, 1, 1},  {6, 5, 5, 3}, {6, 5, 16, 1}, {6, 5, 37, 1},
                             {6, 1, 20, 1}, {1, 5, 7, 1}, {6, 5, 190, 3}};

void check_cell(Cell cell, Activation activation) {
  uint64_t seed = 1;
  for (const Lengths& lengths : {Lengths{}, Lengths{6, 6, 4, 3, 1}})
    for (bool reverse : {false, true})
      for (const Shape& shape : kShapes) {
        if (!lengths.empty() && (shape.T != 6 || shape.B != 5)) continue;
        if (shape.H > 100 && lengths.empty() == reverse) continue;
        Setup s;
        s.problem.cell = cell, s.problem.activation = activation;
        s.problem.T = shape.T, s.problem.B = shape.B, s.problem.I = 3, s.problem.H = shape.H;
        s.problem.reverse = reverse, s.problem.threads = shape.threads;
        s.lengths = lengths;
        for (bool states_only : {false, true}) {
          check<double>(s, states_only, ++seed);
          check<float>(s, states_only, seed);
        }
      }
}

template <class Call>
void expect_refused(const char* what, const Call& call) {
  try {
    call();
    EXPECT(false, "not refused: " << what);
  } catch (const std::invalid_argument& error) {
    EXPECT(std::string(error.what()).find(what) != std::string::npos, error.what());
  }
}

void check_refusals() {
  Problem p;
  p.T = 3, p.B = 2, p.H = 4;
  expect_refused("N must be in [0, T * B]", [&] { fastrnn::second_order_workspace(p, 7); });
  expect_refused("w_hh, wx, rh", [&] {
    fastrnn::SecondOrderBuffers b;
    b.workspace = &p;
    fastrnn::second_order(p, b);
  });
  expect_refused("N must be T * B", [&] { fastrnn::second_order_workspace(p, 3); });
  p.directions = 2;
  expect_refused("directions must be 1", [&] { fastrnn::second_order_workspace(p, 6); });
  p.directions = 1;
  p.dtype = Dtype::kBfloat16;
  expect_refused("float32 or float64", [&] { fastrnn::second_order_workspace(p, 6); });
  p.dtype = Dtype::kFloat32, p.P = 2;
  expect_refused("P must be 0", [&] { fastrnn::second_order_workspace(p, 6); });
}

}  // namespace

int main() {
  for (const std::string& isa : fastrnn::available_isas()) {
    fastrnn::set_isa(isa);
    check_cell(Cell::kElman, Activation::kTanh);
    check_cell(Cell::kElman, Activation::kRelu);
    check_cell(Cell::kLstm, Activation::kTanh);
    check_cell(Cell::kGru, Activation::kTanh);
  }
  check_refusals();
  return finish("test_second_order");
}
