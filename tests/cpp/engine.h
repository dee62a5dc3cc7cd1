// One call of the engine with everything around it watched: each buffer has exactly the size that
// the interface announces, any alignment and guard zones, is filled with NaN where it will be
// overwritten, and is compared afterwards where it must not be.
#pragma once

#include <fastrnn/fastrnn.h>

#include <csignal>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "reference.h"

namespace test {

using fastrnn::Dtype;
using fastrnn::Strides;

enum class Layout { kTimeMajor, kBatchFirst, kPaddedRows, kPaddedRowsAndSteps };

// Bits of Setup::unwanted; the parameters' gradients follow as kWeight << index.
constexpr unsigned kDx = 1, kDh0 = 2, kDc0 = 4, kWeight = 8, kAllGradients = 0xff;

struct Setup {
  Problem problem;
  Lengths lengths;  // ragged only
  Layout layout = Layout::kTimeMajor;
  Given given;
  unsigned unwanted = 0;
  std::vector<int64_t> table = {};  // ragged only: where rows are among table_T * table_B
  int64_t table_T = 0, table_B = 0;
};

// Any rows of padded buffers that are somewhat larger than they must be.
inline void draw_table(Setup& s, Random& random) {
  const Geometry g(s.problem, s.lengths);
  s.table_T = s.problem.T + int64_t(random.below(3));
  s.table_B = s.problem.B + int64_t(random.below(3));
  for (int64_t i = 0; i < s.table_T * s.table_B; ++i) s.table.push_back(i);
  for (int64_t i = s.table_T * s.table_B - 1; i > 0; --i)
    std::swap(s.table[size_t(i)], s.table[size_t(random.below(i + 1))]);
  s.table.resize(size_t(g.N));
}

inline std::string describe(const Setup& s) {
  static const char* const kNames[] = {"elman", "lstm", "gru"};
  static const char* const kDtypes[] = {"float32", "float64", "bfloat16", "float16", "int8"};
  const Problem& p = s.problem;
  std::ostringstream out;
  out << fastrnn::isa() << ' ' << kNames[int(p.cell)] << ' ' << kDtypes[int(p.dtype)]
      << (p.activation == Activation::kRelu ? " relu" : "") << " T=" << p.T << " B=" << p.B
      << " I=" << p.I << " H=" << p.H << " P=" << p.P << " directions=" << p.directions
      << (p.reverse ? " reverse" : "") << (p.bias ? "" : " no bias") << (p.ragged ? " ragged" : "")
      << (s.table.empty() ? "" : " table") << (p.training ? " training" : "")
      << " checkpoint_every=" << p.checkpoint_every << " threads=" << p.threads
      << " samples=" << p.samples << " layout=" << int(s.layout)
      << " h0,c0,dy,dh_n,dc_n=" << s.given.h0 << s.given.c0 << s.given.dy << s.given.dh_n
      << s.given.dc_n << " unwanted=" << s.unwanted;
  return out.str();
}

// A read past a buffer may crash, on any thread: says in which case.
inline void expect_no_crash(const std::string& what) {
  static std::mutex writing;
  static char text[512];
  const std::lock_guard<std::mutex> lock(writing);
  std::snprintf(text, sizeof text, "FAILED: crash, %s\n", what.c_str());
  std::signal(SIGSEGV, [](int) { _exit(write(1, text, std::strlen(text)) > 0 ? 1 : 2); });
}

template <class T>
constexpr Dtype kDtype = sizeof(T) == 4 ? Dtype::kFloat32 : Dtype::kFloat64;

// Elements in a vector of an ISA: sizes are chosen around it.
template <class T>
int64_t vector_width(const std::string& isa) {
  return (isa.rfind("avx512", 0) == 0 ? 64
          : isa == "avx2"             ? 32
                                      : 16) /
         static_cast<int64_t>(sizeof(T));
}

// What the engine computes in, and keeps in the reserve, where the caller's numbers are T.
template <class T>
struct ValueOf {
  using Type = T;
};

template <class T>
struct Results {
  std::vector<T> y, h_n, c_n, dx, dh0, dc0, dw[2][5];
  std::vector<typename ValueOf<T>::Type> reserve;
};

template <class T>
class Engine {
 public:
  Engine(const Setup& setup, const Geometry& g, const Inputs& in) : setup_(setup), g_(g) {
    setup_.problem.dtype = kDtype<T>;
    setup_.problem.ragged = !setup.lengths.empty();
    expect_no_crash(describe(setup_));
    const Problem& p = setup_.problem;
    const fastrnn::Sizes sizes = fastrnn::sizes(p);
    const Given& given = setup.given;
    const int64_t O = g.O, states = p.directions * p.B, lstm = p.cell == Cell::kLstm;
    load_rows(x_, p.I, in.x);
    make_rows(y_, g.D * O), make_rows(dx_, p.I);
    if (given.dy) load_rows(dy_, g.D * O, in.dy);
    if (given.h0) load(h0_, in.h0);
    if (given.c0 && lstm) load(c0_, in.c0);
    if (given.dh_n) load(dh_n_, in.dh_n);
    if (given.dc_n && lstm) load(dc_n_, in.dc_n);
    make(h_n_, states * O), make(dh0_, states * O);
    if (lstm) make(c_n_, states * p.H), make(dc0_, states * p.H);
    const int64_t K = p.checkpoint_every, rows = K ? (p.T + K - 1) / K * p.B : g.N;
    if (p.training && sizes.saved) reserve_ = room<Value>(g.D * rows * sizes.saved * p.H);
    for (int64_t d = 0; d < g.D; ++d)
      for (int i = 0; i < 5; ++i) {
        const Values& w = in.w[d][i];
        const bool bias = i == 2 || i == 3;
        if (bias && !p.bias)
          make(w_[d][i], static_cast<int64_t>(w.size()));  // NaN: must not be read
        else if (!w.empty())
          load(w_[d][i], w);
        make(dw_[d][i], static_cast<int64_t>(w.size()) * p.samples);
      }
    bytes(packed_, sizes.packed);
    bytes(workspace_, sizes.workspace);
    bytes(backward_workspace_, sizes.backward_workspace);
  }

  // What a test does to the buffers before the call.
  std::function<void(fastrnn::ForwardBuffers&)> change_forward;
  std::function<void(fastrnn::BackwardBuffers&)> change_backward;

  // `weights`: false gives null ones, which is enough for an earlier packed copy.
  bool forward(bool repack = true, bool weights = true) {
    fastrnn::ForwardBuffers b;
    b.x = at(x_.memory), b.x_strides = x_.strides;
    b.offsets = setup_.problem.ragged ? g_.offsets.data() : nullptr;
    b.table = table();
    b.h0 = at(h0_), b.c0 = at(c0_);
    if (weights) fill(b.weights);
    b.y = at(y_.memory), b.y_strides = y_.strides;
    b.h_n = at(h_n_), b.c_n = at(c_n_);
    b.reserve = at(reserve_), b.packed = at(packed_), b.repack = repack;
    b.workspace = at(workspace_);
    if (change_forward) change_forward(b);
    const bool finished = fastrnn::forward(setup_.problem, b);
    forward_ran_ = true;
    return finished;
  }

  bool backward() {
    const auto wanted = [&](unsigned bit, auto& p) {
      return setup_.unwanted & bit ? nullptr : at(p);
    };
    fastrnn::BackwardBuffers b;
    b.x = at(x_.memory), b.x_strides = x_.strides;
    b.offsets = setup_.problem.ragged ? g_.offsets.data() : nullptr;
    b.table = table();
    b.h0 = at(h0_), b.c0 = at(c0_);
    fill(b.weights);
    b.y = at(y_.memory), b.y_strides = y_.strides;
    b.reserve = at(reserve_);
    b.dy = at(dy_.memory), b.dy_strides = dy_.strides;
    b.dh_n = at(dh_n_), b.dc_n = at(dc_n_);
    b.dx = wanted(kDx, dx_.memory), b.dx_strides = dx_.strides;
    b.dh0 = wanted(kDh0, dh0_), b.dc0 = wanted(kDc0, dc0_);
    for (int d = 0; d < setup_.problem.directions; ++d) {
      fastrnn::WeightGradients& to = b.gradients[d];
      void** fields[] = {&to.w_ih, &to.w_hh, &to.b_ih, &to.b_hh, &to.w_hr};
      for (int i = 0; i < 5; ++i) *fields[i] = wanted(kWeight << i, dw_[d][i]);
    }
    b.workspace = at(backward_workspace_);
    if (change_backward) change_backward(b);
    const bool finished = fastrnn::backward(setup_.problem, b);
    backward_ran_ = true;
    return finished;
  }

  Results<T> results() {
    Results<T> r;
    r.y = rows(y_), r.h_n = copy(h_n_), r.c_n = copy(c_n_), r.reserve = copy(reserve_);
    r.dx = rows(dx_), r.dh0 = copy(dh0_), r.dc0 = copy(dc0_);
    for (int64_t d = 0; d < g_.D; ++d)
      for (int i = 0; i < 5; ++i) r.dw[d][i] = copy(dw_[d][i]);
    return r;
  }

  std::vector<unsigned char> packed() { return {at(packed_), at(packed_) + packed_->count()}; }

  // Nothing was written outside the outputs, and no input was changed.
  void expect_clean() {
    const std::string what = describe(setup_);
    const bool dx_written = backward_ran_ && !(setup_.unwanted & kDx);
    for (auto* b : {&x_, &y_, &dy_, &dx_}) {
      if (!b->memory) continue;
      const bool written = b == &y_ ? forward_ran_ : b == &dx_ && dx_written;
      EXPECT(gaps_untouched(*b, written), "written between the rows, " << what);
    }
    for (auto* b : all_) EXPECT((*b)->guards_intact(), "written outside a buffer, " << what);
    for (auto* b : all_bytes_)
      EXPECT((*b)->guards_intact(), "written outside packed or workspace, " << what);
    EXPECT(!reserve_ || reserve_->guards_intact(), "written outside the reserve, " << what);
    for (auto& [buffer, before] : inputs_)
      EXPECT(!std::memcmp((*buffer)->data(), before.data(), before.size() * sizeof(T)),
             "an input was changed, " << what);
    const Problem& p = setup_.problem;
    for (int64_t d = 0; d < g_.D; ++d)
      for (int i = 0; i < 5; ++i)
        if (setup_.unwanted & kWeight << i || (!p.bias && (i == 2 || i == 3)))
          EXPECT(untouched(dw_[d][i]), "unwanted gradient written, " << what);
    if (setup_.unwanted & kDx) EXPECT(untouched(dx_.memory), "unwanted dx written, " << what);
    if (setup_.unwanted & kDh0) EXPECT(untouched(dh0_), "unwanted dh0 written, " << what);
    if (setup_.unwanted & kDc0) EXPECT(untouched(dc0_), "unwanted dc0 written, " << what);
  }

 private:
  using Value = typename ValueOf<T>::Type;
  template <class U>
  using Place = std::unique_ptr<Guarded<U>>;
  struct Rows {
    Place<T> memory;
    Strides strides;
    int64_t features = 0;
  };

  template <class U>
  static U* at(Place<U>& p) {
    return p ? p->data() : nullptr;
  }
  template <class U>
  static Place<U> room(int64_t n) {
    return n ? std::make_unique<Guarded<U>>(n) : nullptr;
  }
  void make(Place<T>& p, int64_t n) {
    if (n == 0) return;
    p = room<T>(n);
    all_.push_back(&p);
  }
  void bytes(Place<unsigned char>& p, size_t n) {
    p = std::make_unique<Guarded<unsigned char>>(static_cast<int64_t>(n));
    std::memset(p->data(), 0xff, n);  // NaN
    all_bytes_.push_back(&p);
  }
  void load(Place<T>& p, const Values& from) {
    make(p, static_cast<int64_t>(from.size()));
    for (size_t i = 0; i < from.size(); ++i) p->data()[i] = static_cast<T>(from[i]);
    remember(p);
  }
  void remember(Place<T>& p) {
    if (p) inputs_.emplace_back(&p, std::vector<T>(p->data(), p->data() + p->count()));
  }
  void make_rows(Rows& r, int64_t features) {
    const Problem& p = setup_.problem;
    const bool padded = setup_.layout >= Layout::kPaddedRows;
    r.features = features;
    r.strides.row = features + (padded ? 3 : 0);
    const bool scattered = !setup_.table.empty();
    const int64_t T_ = scattered ? setup_.table_T : p.T, B = scattered ? setup_.table_B : p.B;
    r.strides.step = B * r.strides.row;
    if (setup_.layout == Layout::kBatchFirst) r.strides = {features, T_ * features};
    if (setup_.layout == Layout::kPaddedRowsAndSteps) r.strides.step += 5;
    if (p.ragged && !scattered) r.strides = {-1, features + (padded ? 3 : 0)};
    if (features > 0 && g_.N > 0)
      make(r.memory, (scattered ? (T_ - 1) * r.strides.step + (B - 1) * r.strides.row
                                : position(r, p.T - 1, rows_at(p.T - 1) - 1)) +
                         features);
  }
  void load_rows(Rows& r, int64_t features, const Values& from) {
    make_rows(r, features);
    for_rows(r, [&](int64_t i, T* row) {
      for (int64_t f = 0; f < features; ++f)
        row[f] = static_cast<T>(from[static_cast<size_t>(i * features + f)]);
    });
    remember(r.memory);
  }
  int64_t rows_at(int64_t t) const { return g_.row(t + 1, 0) - g_.row(t, 0); }
  fastrnn::RowTable table() const {
    if (setup_.table.empty()) return {};
    return {setup_.table.data(), setup_.table_T, setup_.table_B};
  }
  int64_t position(const Rows& r, int64_t t, int64_t b) const {
    if (!setup_.table.empty()) {
      const int64_t i = setup_.table[static_cast<size_t>(g_.row(t, b))];
      return i / setup_.table_B * r.strides.step + i % setup_.table_B * r.strides.row;
    }
    if (setup_.problem.ragged) return g_.row(t, b) * r.strides.row;
    return t * r.strides.step + b * r.strides.row;
  }
  template <class Visit>
  void for_rows(Rows& r, Visit&& visit) {
    if (!r.memory) return;
    for (int64_t t = 0; t < setup_.problem.T; ++t)
      for (int64_t b = 0; b < rows_at(t); ++b)
        visit(g_.row(t, b), r.memory->data() + position(r, t, b));
  }
  std::vector<T> rows(Rows& r) {
    std::vector<T> out;
    for_rows(r, [&](int64_t, const T* row) { out.insert(out.end(), row, row + r.features); });
    return out;
  }
  // What lies between the rows, and the rows that a table leaves out: of an output these are zero.
  bool gaps_untouched(Rows& r, bool written) {
    std::vector<bool> used(static_cast<size_t>(r.memory->count()));
    const auto use = [&](const T* row) {
      const auto first = used.begin() + (row - r.memory->data());
      std::fill(first, first + r.features, true);
    };
    for_rows(r, [&](int64_t, const T* row) { use(row); });
    for (int64_t i = 0; written && !setup_.table.empty() && i < setup_.table_T * setup_.table_B;
         ++i) {
      const T* row = r.memory->data() + i / setup_.table_B * r.strides.step +
                     i % setup_.table_B * r.strides.row;
      if (used[static_cast<size_t>(row - r.memory->data())]) continue;
      for (int64_t f = 0; f < r.features; ++f)
        if (std::memcmp(row + f, std::vector<T>(1).data(), sizeof(T))) return false;
      use(row);
    }
    for (size_t i = 0; i < used.size(); ++i)
      if (!used[i] && !r.memory->untouched(static_cast<int64_t>(i))) return false;
    return true;
  }
  static bool untouched(const Place<T>& p) {
    for (int64_t i = 0; p && i < p->count(); ++i)
      if (!p->untouched(i)) return false;
    return true;
  }
  template <class U>
  static std::vector<U> copy(Place<U>& p) {
    return p ? std::vector<U>(p->data(), p->data() + p->count()) : std::vector<U>();
  }
  void fill(fastrnn::Weights (&to)[2]) {
    for (int d = 0; d < setup_.problem.directions; ++d)
      to[d] = {at(w_[d][0]), at(w_[d][1]), at(w_[d][2]), at(w_[d][3]), at(w_[d][4])};
  }

  Setup setup_;
  const Geometry& g_;
  bool forward_ran_ = false, backward_ran_ = false;
  Rows x_, y_, dy_, dx_;
  Place<T> h0_, c0_, h_n_, c_n_, dh_n_, dc_n_, dh0_, dc0_, w_[2][5], dw_[2][5];
  Place<Value> reserve_;
  Place<unsigned char> packed_, workspace_, backward_workspace_;
  std::vector<Place<T>*> all_;
  std::vector<Place<unsigned char>*> all_bytes_;
  std::vector<std::pair<Place<T>*, std::vector<T>>> inputs_;
};

// `tolerance` is in epsilons of the output's largest value, or of kFloor where all values are small
// and may be what is left of larger ones.
template <class T>
void expect_close(const char* name, const std::vector<T>& got, const Values& expected,
                  double tolerance, double& worst, const Setup& setup) {
  EXPECT(got.size() == expected.size(), name << " has " << got.size() << " values");
  if (got.size() != expected.size()) return;
  double scale = 0, error = 0;
  for (double e : expected) scale = std::fmax(scale, std::fabs(e));
  for (size_t i = 0; i < got.size(); ++i) {
    const double off = std::fabs(double(got[i]) - expected[i]);
    if (!(off <= error) && error == error) error = off;  // keeps NaN
  }
  const double eps = std::numeric_limits<T>::epsilon();
  constexpr double kFloor = 0.2;
  const double ratio = error / (eps * std::fmax(scale, kFloor));
  if (ratio / tolerance > worst) worst = ratio / tolerance;
  EXPECT(ratio <= tolerance, name << " is off by " << ratio << " eps of its largest value (limit "
                                  << tolerance << "), " << describe(setup));
}

}  // namespace test
