// Stream: steps through a stack of layers are the sequence calls, bit for bit; states come and go;
// and what a step must not touch stays as it is.
#include <algorithm>
#include <functional>
#include <stdexcept>

#include "engine.h"

namespace {

using namespace test;
using fastrnn::Stream;

template <class T>
std::vector<T> convert(const Values& v) {
  return std::vector<T>(v.begin(), v.end());
}

template <class T>
bool equal(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() || !std::memcmp(a.data(), b.data(), a.size() * sizeof(T)));
}

// A stack of layers, layer by layer through forward(): what a stream must repeat.
template <class T>
struct Stack {
  Stack(const Problem& problem, int layers, uint64_t seed) {
    Setup setup;
    setup.problem = problem;
    Values x;
    for (int l = 0; l < layers; ++l) {
      Problem& p = setup.problem;
      const Geometry g(p, {});
      Inputs in = make_inputs(p, g, {}, seed + uint64_t(l));
      if (l == 0)
        first = convert<T>(in.x);
      else
        in.x = x;
      Engine<T> engine(setup, g, in);
      engine.forward();
      const Results<T> r = engine.results();
      x.assign(r.y.begin(), r.y.end());
      y = r.y;
      append(h0, convert<T>(in.h0)), append(h_n, r.h_n);
      append(c0, convert<T>(in.c0)), append(c_n, r.c_n);
      for (auto& w : in.w[0]) weights.push_back(convert<T>(w));
      p.I = g.O;
    }
  }
  static void append(std::vector<T>& to, const std::vector<T>& from) {
    to.insert(to.end(), from.begin(), from.end());
  }
  std::vector<fastrnn::Weights> pointers() const {
    std::vector<fastrnn::Weights> all;
    for (size_t i = 0; i < weights.size(); i += 5)
      all.push_back({weights[i].data(), weights[i + 1].data(), weights[i + 2].data(),
                     weights[i + 3].data(), weights[i + 4].data()});
    return all;
  }

  std::vector<T> first, y;  // [T,B,I], [T,B,O]
  std::vector<T> h0, c0, h_n, c_n;
  std::vector<std::vector<T>> weights;
};

template <class T>
void step(Stream& stream, const Problem& p, const std::vector<T>& x, std::vector<T>& y, int64_t t) {
  const int64_t O = p.P ? p.P : p.H, x_row = p.I + 2, y_row = O + 3;
  Guarded<T> in((p.B - 1) * x_row + p.I), out((p.B - 1) * y_row + O);
  for (int64_t b = 0; b < p.B; ++b)
    std::copy_n(x.begin() + (t * p.B + b) * p.I, p.I, in.data() + b * x_row);
  stream.step(in.data(), x_row, out.data(), y_row);
  for (int64_t b = 0; b < p.B; ++b) {
    const T* row = out.data() + b * y_row;
    y.insert(y.end(), row, row + O);
    for (int64_t i = O; b + 1 < p.B && i < y_row; ++i)
      EXPECT(out.untouched(b * y_row + i), "a step wrote between rows");
  }
  EXPECT(in.guards_intact() && out.guards_intact(), "a step wrote outside y");
}

template <class T>
void check_stack(const Problem& p, int layers, uint64_t seed) {
  Setup setup;
  setup.problem = p;
  const std::string what = std::to_string(layers) + " layers, " + describe(setup);
  const Stack<T> stack(p, layers, seed), other(p, layers, seed + 100);
  Stream stream(p, layers);
  stream.load(stack.pointers().data());
  const auto states = [&](const Stream& from, std::vector<T>& h, std::vector<T>& c) {
    Guarded<T> hs(int64_t(stack.h_n.size())), cs(int64_t(stack.c_n.size()));
    from.get_state(hs.data(), cs.count() ? cs.data() : nullptr);
    EXPECT(hs.guards_intact() && cs.guards_intact(), "get_state wrote outside, " << what);
    h.assign(hs.data(), hs.data() + hs.count()), c.assign(cs.data(), cs.data() + cs.count());
  };
  const auto run = [&](Stream& s, int64_t begin, int64_t end, const Stack<T>& of) {
    std::vector<T> y;
    for (int64_t t = begin; t < end; ++t) step(s, p, of.first, y, t);
    return y;
  };
  const auto part = [&](const std::vector<T>& y, int64_t begin, int64_t end) {
    const auto n = static_cast<int64_t>(y.size()) / p.T;
    return std::vector<T>(y.begin() + begin * n, y.begin() + end * n);
  };
  const auto c0 = stack.c0.empty() ? nullptr : stack.c0.data();
  std::vector<T> h, c;

  // A new stream's state is zeros.
  states(stream, h, c);
  EXPECT(std::count(h.begin(), h.end(), T(0)) == int64_t(h.size()) &&
             std::count(c.begin(), c.end(), T(0)) == int64_t(c.size()),
         "initial state, " << what);
  stream.set_state(stack.h0.data(), c0);
  states(stream, h, c);
  EXPECT(equal(h, stack.h0) && equal(c, stack.c0), "get_state after set_state, " << what);
  EXPECT(equal(run(stream, 0, p.T, stack), stack.y), "y differs from the sequence's, " << what);
  states(stream, h, c);
  EXPECT(equal(h, stack.h_n) && equal(c, stack.c_n), "the last state, " << what);

  // Interrupted after an odd number of steps, and carried on by another stream.
  const int64_t half = p.T / 2 | 1;
  stream.set_state(stack.h0.data(), c0);
  EXPECT(equal(run(stream, 0, half, stack), part(stack.y, 0, half)), "second run, " << what);
  states(stream, h, c);
  Stream second(p, layers);
  second.load(stack.pointers().data());
  second.set_state(h.data(), c.empty() ? nullptr : c.data());
  EXPECT(equal(run(second, half, p.T, stack), part(stack.y, half, p.T)), "carried on, " << what);

  // Null is zeros, also after steps; load() replaces the weights and keeps the state.
  stream.set_state(nullptr, nullptr);
  const std::vector<T> zeros(stack.h0.size(), T(0)), zero_cells(stack.c0.size(), T(0));
  second.set_state(zeros.data(), zero_cells.empty() ? nullptr : zero_cells.data());
  EXPECT(equal(run(stream, 0, p.T, stack), run(second, 0, p.T, stack)), "null states, " << what);
  stream.set_state(other.h0.data(), other.c0.empty() ? nullptr : other.c0.data());
  stream.load(other.pointers().data());
  EXPECT(equal(run(stream, 0, p.T, other), other.y), "other weights, " << what);
}

template <class T>
void check_cells(const std::string& isa) {
  const int64_t V = vector_width<T>(isa);
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru})
    for (int64_t B : {1, 2, 7})
      for (int layers : {1, 3}) {
        Problem p;
        p.cell = cell, p.dtype = kDtype<T>, p.threads = 1;
        p.T = 7, p.B = B, p.I = V + 1, p.H = layers == 1 ? 9 * V + 1 : 2 * V - 1;
        check_stack<T>(p, layers, 1);
        p.bias = false;
        if (cell == Cell::kElman) p.activation = Activation::kRelu;
        if (cell == Cell::kLstm) p.P = V + layers / 3;
        if (p.P < p.H) check_stack<T>(p, layers, 2);
      }
}

void check_misuse() {
  const auto bad = [](const char* field, int layers, const std::function<void(Problem&)>& change) {
    Problem p;
    p.B = 2, p.I = 3, p.H = 4;
    change(p);
    std::string text = "no error";
    try {
      Stream stream(p, layers);
      stream.load(std::vector<fastrnn::Weights>(4).data());
    } catch (const std::invalid_argument& e) {
      text = e.what();
    }
    EXPECT(text.find(field) != std::string::npos,
           "expected an error about " << field << ": " << text);
  };
  bad("B must", 1, [](Problem& p) { p.B = 0; });
  bad("H must", 1, [](Problem& p) { p.H = 0; });
  bad("I must", 1, [](Problem& p) { p.I = -1; });
  bad("P must", 1, [](Problem& p) { p.P = 4; });
  bad("layers must", 0, [](Problem&) {});
  bad("directions", 1, [](Problem& p) { p.directions = 2; });
  bad("directions", 1, [](Problem& p) { p.reverse = true; });
  bad("activation", 1, [](Problem& p) { p.activation = Activation::kRelu; });
  bad("w_ih", 2, [](Problem&) {});
}

}  // namespace

int main() {
  check_misuse();
  for (const std::string& isa : fastrnn::available_isas()) {
    fastrnn::set_isa(isa);
    check_cells<float>(isa);
    check_cells<double>(isa);
    std::printf("%s: steps equal sequences, states, new weights\n", isa.c_str());
  }
  return finish("test_stream");
}
