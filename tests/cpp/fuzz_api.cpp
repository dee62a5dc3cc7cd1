// Random calls of the C++ interface, half of them made wrong in some way: std::invalid_argument or
// the right answer, nothing else. `fuzz_api CALLS FIRST` runs that many from that number on; each
// call follows from its number, which a failure names.
#include <stdexcept>

#include "cases.h"
#include "int8.h"

namespace {

using namespace test;
using fastrnn::BackwardBuffers;
using fastrnn::ForwardBuffers;

int64_t refused = 0, accepted = 0;

// True if the call was refused as it should be.
template <class Call>
bool refuses(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument& e) {
    return std::strlen(e.what()) > 0;
  }
  return false;
}

Cell any_cell(Random& random) {
  return random.pick(std::vector<Cell>{Cell::kElman, Cell::kLstm, Cell::kGru});
}

Setup any_setup(Random& random, bool is_double) {
  const int64_t H = 1 + random.below(random.coin() ? 9 : 40);
  const Cell cell = any_cell(random);
  Setup s = is_double ? draw<double>(random, cell, H, 8) : draw<float>(random, cell, H, 16);
  s.problem.training = true;
  if (random.below(3) == 0) s.problem.checkpoint_every = 1 + random.below(s.problem.T + 2);
  if (random.below(4) == 0) s.problem.threads = 1 + int(random.below(200));
  return s;
}

// Numbers at which 32-bit and 64-bit arithmetic goes wrong.
int64_t odd_number(Random& random) {
  const int64_t power = int64_t(1) << random.pick(std::vector<int>{0, 7, 15, 16, 30, 31, 32, 62});
  const int64_t near = power + random.below(3) - 1;
  return random.pick(std::vector<int64_t>{near, -near, INT64_MAX, INT64_MIN, 0, -1});
}

// Whether sizes() may accept it, as the header says it.
bool makes_sense(const Problem& p) {
  const bool lstm = p.cell == Cell::kLstm;
  return int(p.cell) >= 0 && int(p.cell) < 3 && int(p.dtype) >= 0 && int(p.dtype) < 5 && p.T >= 1 &&
         p.B >= 0 && p.I >= 0 && p.H >= 1 && p.P >= 0 && p.P < p.H && (p.P == 0 || lstm) &&
         (p.directions == 1 || (p.directions == 2 && !p.reverse)) && p.checkpoint_every >= 0 &&
         p.threads >= 1 && !(p.dtype == Dtype::kInt8 && p.training) &&
         (p.activation == Activation::kTanh ||
          (p.activation == Activation::kRelu && p.cell == Cell::kElman));
}

void change_problem(Random& random, Problem& p) {
  const auto number = [&] { return odd_number(random); };
  switch (random.below(12)) {
    case 0:
      p.T = number();
      break;
    case 1:
      p.B = number();
      break;
    case 2:
      p.I = number();
      break;
    case 3:
      p.H = number();
      break;
    case 4:
      p.P = number();
      break;
    case 5:
      p.checkpoint_every = number();
      break;
    case 6:
      p.directions = int(number());
      break;
    case 7:
      p.threads = int(number());
      break;
    case 8:
      p.cell = Cell(int(number()));
      break;
    case 9:
      p.dtype = Dtype(int(number()));
      break;
    case 10:
      p.activation = Activation(int(number()));
      break;
    default:
      p.reverse = !p.reverse;
  }
}

// Sizes of a problem with one to three odd fields: refused, or large enough for what they hold.
void fuzz_sizes(Random& random, const std::string& name) {
  Problem p = any_setup(random, false).problem;
  for (int64_t n = 1 + random.below(3); n > 0; --n) change_problem(random, p);
  fastrnn::Sizes s;
  if (refuses([&] { s = fastrnn::sizes(p); })) {
    const double most = double(p.T) * (double(p.B) + 1) * (double(p.I) + double(p.H));
    EXPECT(!makes_sense(p) || most > 1e9 || double(p.H) * (double(p.I) + double(p.H)) > 1e9,
           name << " was refused");
    EXPECT(refuses([&] { fastrnn::forward(p, {}); }), name << ": forward took what sizes refused");
    EXPECT(refuses([&] { fastrnn::backward(p, {}); }),
           name << ": backward took what sizes refused");
    ++refused;
    return;
  }
  EXPECT(makes_sense(p), name << " was accepted");
  const double gates = gate_count(p.cell), O = double(p.P ? p.P : p.H);
  const double numbers = gates * double(p.H) * (double(p.I) + O) + double(p.P) * double(p.H);
  const double width = p.dtype == Dtype::kInt8 ? 1 : p.dtype == Dtype::kFloat64 ? 8 : 2;
  EXPECT(double(s.packed) >= numbers * width * p.directions && s.packed >> 62 == 0 &&
             s.workspace >> 62 == 0 && s.backward_workspace >> 62 == 0,
         name << ": sizes that cannot hold the buffers");
  ++accepted;
}

// One pointer that the call needs, made null.
template <class T>
void fuzz_null(Random& random, const Setup& setup, const std::string& name) {
  const Problem& p = setup.problem;
  const Geometry g(p, setup.lengths);
  const Inputs in = make_inputs(p, g, setup.given, random.bits());
  Engine<T> engine(setup, g, in);
  const auto direction = size_t(random.below(p.directions));
  const auto pick = [&](auto& b, std::vector<const void**> fields, void** io, void** space) {
    fastrnn::Weights& w = b.weights[direction];
    if (p.I) fields.push_back(&w.w_ih);
    fields.push_back(&w.w_hh);
    if (p.bias) fields.push_back(&w.b_ih), fields.push_back(&w.b_hh);
    if (p.P) fields.push_back(&w.w_hr);
    if (p.I) fields.push_back(&b.x);
    const auto chosen = size_t(random.below(int64_t(fields.size()) + 2));
    if (chosen < fields.size())
      *fields[chosen] = nullptr;
    else
      *(chosen == fields.size() ? space : io) = nullptr;
  };
  engine.change_forward = [&](ForwardBuffers& b) {
    void** packed = fastrnn::sizes(p).packs_as_used ? &b.h_n : &b.packed;
    pick(b, {}, random.coin() ? &b.y : random.coin() ? &b.h_n : packed, &b.workspace);
  };
  engine.change_backward = [&](BackwardBuffers& b) { pick(b, {&b.y}, &b.workspace, &b.workspace); };
  EXPECT(refuses([&] { engine.forward(); }), name << ": forward took a null pointer");
  EXPECT(refuses([&] { engine.backward(); }), name << ": backward took a null pointer");
  engine.expect_clean();
  ++refused;
}

// Offsets that are not those of a packed batch.
template <class T>
void fuzz_offsets(Random& random, Setup setup, const std::string& name) {
  if (setup.lengths.empty()) setup.lengths = draw_lengths(random, setup.problem.B, setup.problem.T);
  setup.problem.ragged = true;
  const Geometry g(setup.problem, setup.lengths);
  const Inputs in = make_inputs(setup.problem, g, setup.given, random.bits());
  Engine<T> engine(setup, g, in);
  std::vector<int64_t> offsets = g.offsets;
  const auto falls = [&] {
    if (offsets[0] != 0 || offsets[1] != setup.problem.B) return false;
    for (size_t t = 1; t + 1 < offsets.size(); ++t) {
      const int64_t now = int64_t(uint64_t(offsets[t + 1]) - uint64_t(offsets[t]));
      if (now < 1 || now > offsets[t] - offsets[t - 1]) return false;
    }
    return true;
  };
  while (falls()) {
    int64_t& one = offsets[size_t(random.below(int64_t(offsets.size())))];
    one = random.coin() ? odd_number(random) : one + random.below(7) - 3;
  }
  const int64_t* wrong = random.below(8) ? offsets.data() : nullptr;
  engine.change_forward = [&](ForwardBuffers& b) { b.offsets = wrong; };
  engine.change_backward = [&](BackwardBuffers& b) { b.offsets = wrong; };
  EXPECT(refuses([&] { engine.forward(); }), name << ": forward took wrong offsets");
  EXPECT(refuses([&] { engine.backward(); }), name << ": backward took wrong offsets");
  engine.expect_clean();
  ++refused;
}

// Rows that are gigabytes apart, in memory that is only reserved: the same bits as side by side.
class Sparse {
 public:
  explicit Sparse(size_t bytes) : bytes_(bytes) {
    at_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
               -1, 0);
    if (at_ == MAP_FAILED) std::abort();
  }
  Sparse(const Sparse&) = delete;
  Sparse& operator=(const Sparse&) = delete;
  ~Sparse() { munmap(at_, bytes_); }
  float* data() { return static_cast<float*>(at_); }

 private:
  size_t bytes_;
  void* at_;
};

void fuzz_far_rows(Random& random, Setup setup, const std::string& name) {
  Problem& p = setup.problem;
  setup.lengths.clear(), setup.table.clear(), p.ragged = false, setup.unwanted = 0,
                                              setup.given = {};
  setup.layout = Layout::kTimeMajor;
  p.T = 1 + random.below(3), p.B = 1 + random.below(3);
  const Geometry g(p, setup.lengths);
  const Inputs in = make_inputs(p, g, setup.given, random.bits());
  Engine<float> near(setup, g, in), far(setup, g, in);
  near.forward(), near.backward();
  const Results<float> expected = near.results();

  const int64_t gap = (int64_t(1) << 31) + random.below(64) - 32;
  const bool batch_first = random.coin();
  const int64_t width = g.D * g.O, apart = std::max(width, p.I);
  const int64_t rows = batch_first ? p.B : p.T;
  const Strides strides = batch_first ? Strides{apart, gap} : Strides{gap, apart};
  const auto bytes = size_t(rows * gap + 4 * apart) * sizeof(float);
  Sparse x(bytes), y(bytes), dy(bytes), dx(bytes);
  const auto each = [&](int64_t n, const auto& visit) {
    for (int64_t i = 0; i < p.T * p.B; ++i)
      for (int64_t f = 0; f < n; ++f)
        visit(i / p.B * strides.step + i % p.B * strides.row + f, size_t(i * n + f));
  };
  each(p.I, [&](int64_t at, size_t i) { x.data()[at] = float(in.x[i]); });
  each(width, [&](int64_t at, size_t i) { dy.data()[at] = float(in.dy[i]); });
  far.change_forward = [&](ForwardBuffers& b) {
    b.x = x.data(), b.y = y.data(), b.x_strides = b.y_strides = strides;
  };
  far.change_backward = [&](BackwardBuffers& b) {
    b.x = x.data(), b.y = y.data(), b.dy = dy.data(), b.dx = dx.data();
    b.x_strides = b.y_strides = b.dy_strides = b.dx_strides = strides;
  };
  far.forward(), far.backward();
  each(width, [&](int64_t at, size_t i) {
    EXPECT(y.data()[at] == expected.y[i], name << ": y differs where rows are far apart");
  });
  each(p.I, [&](int64_t at, size_t i) {
    EXPECT(dx.data()[at] == expected.dx[i], name << ": dx differs where rows are far apart");
  });
  EXPECT(far.results().dw[0][1] == expected.dw[0][1], name << ": dW differs, rows far apart");
  ++accepted;
}

// 8-bit weights: what they are multiplied to, or one pointer that the call needs made null.
void fuzz_int8(Random& random, const std::string& name) {
  Setup s = any_setup(random, false);
  Problem& p = s.problem;
  p.training = false, p.checkpoint_every = 0, p.threads = std::min(p.threads, 4);
  p.dtype = Dtype::kInt8;
  Problem trained = p;
  trained.training = true;
  EXPECT(refuses([&] { fastrnn::sizes(trained); }), name << ": 8-bit weights were to be trained");
  EXPECT(refuses([&] { fastrnn::backward(p, {}); }), name << ": 8-bit weights went backward");
  Int8Run run(p, s.lengths, random.bits());
  if (random.coin()) {
    run.check();
    ++accepted;
    return;
  }
  const auto direction = size_t(random.below(p.directions));
  const uint64_t seed = random.bits();
  run.change = [&](ForwardBuffers& b) {
    fastrnn::Weights& w = b.weights[direction];
    std::vector<const void**> fields = {&w.w_ih, &w.w_hh, &b.x};
    std::vector<const float**> scales = {&w.scale_ih, &w.scale_hh};
    if (p.bias) fields.push_back(&w.b_ih), fields.push_back(&w.b_hh);
    if (p.P) fields.push_back(&w.w_hr), scales.push_back(&w.scale_hr);
    Random pick(seed);
    if (pick.coin())
      *pick.pick(fields) = nullptr;
    else if (pick.coin())
      *pick.pick(scales) = nullptr;
    else
      *pick.pick(std::vector<void**>{&b.y, &b.h_n, &b.packed, &b.workspace}) = nullptr;
  };
  EXPECT(refuses([&] { run.forward(true); }), name << ": a null pointer was taken");
  run.expect_clean();
  ++refused;
}

template <class T>
void fuzz_buffers(Random& random, int64_t kind, const std::string& name) {
  const Setup setup = any_setup(random, sizeof(T) == 8);
  if (kind == 0) return fuzz_null<T>(random, setup, name);
  if (kind == 1) return fuzz_offsets<T>(random, setup, name);
  compare<T>(setup, random.bits());
  ++accepted;
}

void fuzz(int64_t number) {
  Random random{uint64_t(number)};
  const std::vector<std::string> isas = fastrnn::available_isas();
  fastrnn::set_isa(random.pick(isas));
  const std::string name = "call " + std::to_string(number);
  const int64_t kind = random.below(14);
  if (kind < 5) return fuzz_sizes(random, name);
  if (kind == 5) return fuzz_far_rows(random, any_setup(random, false), name);
  if (kind > 11) return fuzz_int8(random, name);
  const int64_t what = kind < 8 ? 0 : kind < 10 ? 1 : 2;
  random.coin() ? fuzz_buffers<double>(random, what, name)
                : fuzz_buffers<float>(random, what, name);
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t calls = count > 1 ? std::strtoll(arguments[1], nullptr, 10) : quick() ? 400 : 3000;
  const int64_t first = count > 2 ? std::strtoll(arguments[2], nullptr, 10) : 0;
  for (int64_t i = first; i < first + calls; ++i) {
    const int64_t before = failed;
    fuzz(i);
    if (failed > before) std::printf("again: fuzz_api 1 %lld\n", static_cast<long long>(i));
  }
  std::printf("%lld random calls: %lld refused, %lld answered rightly\n",
              static_cast<long long>(calls), static_cast<long long>(refused),
              static_cast<long long>(accepted));
  return finish("fuzz_api");
}
