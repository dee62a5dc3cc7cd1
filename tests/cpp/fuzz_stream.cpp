// Random lives of Stream, many of their calls made wrong: each step has the bits of forward(), and
// what is refused leaves the stream as it was. `fuzz_stream LIVES FIRST` runs that many from that
// number on; each follows from its number, which a failure names.
#include <algorithm>
#include <limits>
#include <new>
#include <stdexcept>

#include "engine.h"

namespace {

using namespace test;
using fastrnn::Stream;

int64_t refused = 0, accepted = 0, too_large = 0;

template <class Call>
bool refuses(const Call& call) {
  try {
    call();
  } catch (const std::invalid_argument& e) {
    return std::strlen(e.what()) > 0;
  }
  return false;
}

// One layer's weights, of 8 bits with a scale for each row where `int8`.
template <class T>
class Layer {
 public:
  Layer(Random& random, const Problem& p) {
    static constexpr int64_t kGates[] = {1, 4, 3};
    const int64_t gates = kGates[int(p.cell)] * p.H, O = p.P ? p.P : p.H;
    const bool int8 = p.dtype == Dtype::kInt8;
    matrix(random, 0, gates, p.I, int8), matrix(random, 1, gates, O, int8);
    if (p.P) matrix(random, 2, p.P, p.H, int8);
    for (auto& bias : bias_)
      for (int64_t i = 0; p.bias && i < gates; ++i) bias.push_back(T(random.value()));
  }

  fastrnn::Weights pointers() const {
    const auto at = [](const auto& v) { return v.empty() ? nullptr : v.data(); };
    return {at(bytes_[0]), at(bytes_[1]), at(bias_[0]),  at(bias_[1]),
            at(bytes_[2]), at(scale_[0]), at(scale_[1]), at(scale_[2])};
  }

 private:
  void matrix(Random& random, int i, int64_t rows, int64_t n, bool int8) {
    std::vector<char>& bytes = bytes_[i];
    bytes.resize(size_t(rows * n) * (int8 ? 1 : sizeof(T)));
    for (int64_t k = 0; k < rows * n; ++k) {
      const T value = T(random.value() / std::sqrt(double(n)));
      if (int8)
        bytes[size_t(k)] = static_cast<char>(random.below(255) - 127);
      else
        std::memcpy(bytes.data() + size_t(k) * sizeof(T), &value, sizeof(T));
    }
    for (int64_t r = 0; int8 && r < rows; ++r)
      scale_[i].push_back(float((1 + random.value()) / (127 * std::sqrt(double(n)))));
  }

  std::vector<char> bytes_[3];  // w_ih, w_hh, w_hr
  std::vector<float> scale_[3];
  std::vector<T> bias_[2];
};

Problem any_problem(Random& random, bool is_double) {
  Problem p;
  p.cell = random.pick(std::vector<Cell>{Cell::kElman, Cell::kLstm, Cell::kGru});
  p.dtype = is_double ? Dtype::kFloat64 : random.coin() ? Dtype::kInt8 : Dtype::kFloat32;
  p.B = random.pick(std::vector<int64_t>{1, 1, 2, 5, 9});
  p.I = 1 + random.below(40), p.H = 1 + random.below(random.coin() ? 5 : 70);
  if (p.cell == Cell::kLstm && p.H > 1 && random.coin()) p.P = 1 + random.below(p.H - 1);
  if (p.cell == Cell::kElman && random.coin()) p.activation = Activation::kRelu;
  p.bias = random.below(4) > 0;
  return p;
}

template <class T>
class Life {
 public:
  Life(Random& random, const std::string& name)
      : random_(random), p_(any_problem(random, sizeof(T) == 8)), name_(name) {
    p_.training = false, layers_ = 1 + int(random.below(3));
    Setup setup;
    setup.problem = p_;
    name_ += ", " + std::to_string(layers_) + " layers, " + describe(setup);
    expect_no_crash(name_);
    stream_ = std::make_unique<Stream>(p_, layers_);
    h_.resize(size_t(layers_ * p_.B * O())), c_.resize(size_t(layers_ * p_.B * cells()));
    load();
  }

  void act() {
    switch (random_.below(8)) {
      case 0:
        return load();
      case 1:
        return load_wrong();
      case 2:
        return assign();
      case 3:
        return exchange();
      default:
        step();
    }
  }

 private:
  int64_t O() const { return p_.P ? p_.P : p_.H; }
  int64_t cells() const { return p_.cell == Cell::kLstm ? p_.H : 0; }
  Problem problem(int layer) const {
    Problem p = p_;
    if (layer > 0) p.I = O();
    return p;
  }
  std::vector<fastrnn::Weights> pointers() const {
    std::vector<fastrnn::Weights> all;
    for (const Layer<T>& l : weights_) all.push_back(l.pointers());
    return all;
  }
  std::vector<T> values(size_t n) {
    std::vector<T> v(n);
    for (T& e : v) e = T(random_.value());
    return v;
  }
  static bool equal(const T* a, const T* b, size_t n) {
    return n == 0 || !std::memcmp(a, b, n * sizeof(T));
  }

  void load() {
    weights_.clear();
    for (int l = 0; l < layers_; ++l) weights_.emplace_back(random_, problem(l));
    stream_->load(pointers().data());
    ++accepted;
  }

  void load_wrong() {
    std::vector<fastrnn::Weights> all = pointers();
    fastrnn::Weights& w = all[size_t(random_.below(layers_))];
    std::vector<const void**> fields = {&w.w_ih, &w.w_hh};
    if (p_.bias) fields.push_back(&w.b_ih), fields.push_back(&w.b_hh);
    if (p_.P) fields.push_back(&w.w_hr);
    std::vector<const float**> scales = {&w.scale_ih, &w.scale_hh};
    if (p_.P) scales.push_back(&w.scale_hr);
    if (p_.dtype == Dtype::kInt8 && random_.coin())
      *random_.pick(scales) = nullptr;
    else
      *random_.pick(fields) = nullptr;
    const fastrnn::Weights* const given = random_.below(5) ? all.data() : nullptr;
    EXPECT(refuses([&] { stream_->load(given); }), name_ << ": a null weight was taken");
    EXPECT(refuses([&] { stream_->get_state(nullptr, c_.data()); }),
           name_ << ": get_state of null");
    ++refused;
    check_state();
  }

  void assign() {
    const bool zeros = random_.below(4) == 0;
    h_ = zeros ? std::vector<T>(h_.size()) : values(h_.size());
    c_ = zeros ? std::vector<T>(c_.size()) : values(c_.size());
    stream_->set_state(zeros ? nullptr : h_.data(), zeros || c_.empty() ? nullptr : c_.data());
    ++accepted;
    check_state();
  }

  // Another stream goes on from this one's state.
  void exchange() {
    auto other = std::make_unique<Stream>(p_, layers_);
    if (random_.coin()) other->load(pointers().data());
    other->set_state(h_.data(), c_.empty() ? nullptr : c_.data());
    other->load(pointers().data());
    stream_ = std::move(other);
    ++accepted;
    check_state();
  }

  void step() {
    const int64_t x_row = p_.I + random_.below(3), y_row = O() + random_.below(3);
    Guarded<T> x((p_.B - 1) * x_row + p_.I), y((p_.B - 1) * y_row + O());
    std::vector<T> in = values(size_t(p_.B * p_.I));
    for (int64_t b = 0; b < p_.B; ++b)
      std::copy_n(in.data() + b * p_.I, p_.I, x.data() + b * x_row);
    stream_->step(x.data(), x_row, y.data(), y_row);
    for (int l = 0; l < layers_; ++l) in = forward(l, in);
    for (int64_t b = 0; b < p_.B; ++b) {
      EXPECT(equal(y.data() + b * y_row, in.data() + b * O(), size_t(O())), name_ << ": y differs");
      for (int64_t i = O(); b + 1 < p_.B && i < y_row; ++i)
        EXPECT(y.untouched(b * y_row + i), name_ << ": written between rows");
    }
    EXPECT(x.guards_intact() && y.guards_intact(), name_ << ": written outside y");
    ++accepted;
    check_state();
  }

  // What a step through one layer must be; moves h_ and c_ on.
  std::vector<T> forward(int layer, const std::vector<T>& x) {
    const Problem p = problem(layer);
    const fastrnn::Sizes sizes = fastrnn::sizes(p);
    std::vector<char> packed(sizes.packed), workspace(sizes.workspace);
    T* const h = h_.data() + layer * p.B * O();
    T* const c = cells() ? c_.data() + layer * p.B * p.H : nullptr;
    const std::vector<T> h0(h, h + p.B * O()), c0(c, c + p.B * cells());
    std::vector<T> y(size_t(p.B * O()));
    fastrnn::ForwardBuffers b;
    b.x = x.data(), b.x_strides = {0, p.I}, b.y = y.data(), b.y_strides = {0, O()};
    b.h0 = h0.data(), b.c0 = c ? c0.data() : nullptr, b.h_n = h, b.c_n = c;
    b.weights[0] = weights_[size_t(layer)].pointers();
    b.packed = packed.data(), b.workspace = workspace.data();
    fastrnn::forward(p, b);
    return y;
  }

  void check_state() {
    Guarded<T> h(int64_t(h_.size())), c(int64_t(c_.size()));
    stream_->get_state(h.data(), c_.empty() ? nullptr : c.data());
    EXPECT(equal(h.data(), h_.data(), h_.size()), name_ << ": h differs");
    EXPECT(equal(c.data(), c_.data(), c_.size()), name_ << ": c differs");
    EXPECT(h.guards_intact() && c.guards_intact(), name_ << ": get_state wrote outside");
  }

  Random& random_;
  Problem p_;
  int layers_ = 1;
  std::string name_;
  std::unique_ptr<Stream> stream_;
  std::vector<Layer<T>> weights_;
  std::vector<T> h_, c_;
};

// Streams that make no sense, or that no memory holds.
void fuzz_creation(Random& random, const std::string& name) {
  Problem p = any_problem(random, random.coin());
  int layers = 1 + int(random.below(3));
  const auto odd = [&] {
    const int64_t power = int64_t(1) << random.pick(std::vector<int>{0, 28, 31, 32, 40, 62});
    return random.pick(std::vector<int64_t>{power + random.below(3) - 1, -power, INT64_MIN, 0, -1});
  };
  const int64_t what = random.below(10);
  if (what == 0) p.B = odd();
  if (what == 1) p.I = odd();
  if (what == 2) p.H = odd();
  if (what == 3) p.P = odd();
  if (what == 4) p.cell = Cell(int(odd()));
  if (what == 5) p.dtype = Dtype(int(odd()));
  if (what == 6) p.directions = 2;
  if (what == 7) p.reverse = true;
  if (what == 8) p.activation = Activation(int(odd()));
  if (what == 9) {
    p.H = (int64_t(1) << 28) - 1000, p.P = 0;
    layers = random.pick(std::vector<int>{1, 4, 16, 64, 1 << 16});
  }
  if (random.below(3) == 0) layers = int(odd());
  const bool lstm = p.cell == Cell::kLstm;
  const bool known = int(p.cell) >= 0 && int(p.cell) < 3 && int(p.dtype) >= 0 && int(p.dtype) < 5;
  const bool sense = known && p.B >= 1 && p.I >= 0 && p.H >= 1 && p.P >= 0 && p.P < p.H &&
                     (p.P == 0 || lstm) && p.directions == 1 && !p.reverse && layers >= 1 &&
                     (p.activation == Activation::kTanh ||
                      (p.activation == Activation::kRelu && p.cell == Cell::kElman));
  const double bytes = (double(p.B) + double(p.H)) * (double(p.I) + double(p.H)) * layers;
  const double most = 1 << 26, no_machine = std::ldexp(1, 48);
  if (sense && bytes > most && bytes < no_machine) return;  // it might be had
  try {
    const Stream stream(p, layers);
    EXPECT(sense && bytes <= most, name << " was accepted");
    ++accepted;
  } catch (const std::invalid_argument& e) {
    EXPECT((!sense || bytes > no_machine || layers > 1 << 16) && std::strlen(e.what()) > 0,
           name << " was refused: " << e.what());
    ++refused;
  } catch (const std::exception& e) {  // std::bad_alloc, std::length_error
    EXPECT(sense && bytes > no_machine, name << ": " << e.what());
    ++too_large;
  }
}

void fuzz(int64_t number) {
  Random random{uint64_t(number)};
  fastrnn::set_isa(random.pick(fastrnn::available_isas()));
  const std::string name = "life " + std::to_string(number);
  if (random.below(4) == 0) return fuzz_creation(random, name);
  const auto live = [&](auto life) {
    for (int64_t acts = 1 + random.below(12); acts > 0; --acts) life.act();
  };
  random.below(3) ? live(Life<float>(random, name)) : live(Life<double>(random, name));
}

}  // namespace

int main(int count, char** arguments) {
  const int64_t lives = count > 1 ? std::strtoll(arguments[1], nullptr, 10) : quick() ? 200 : 1500;
  const int64_t first = count > 2 ? std::strtoll(arguments[2], nullptr, 10) : 0;
  for (int64_t i = first; i < first + lives; ++i) {
    const int64_t before = failed;
    fuzz(i);
    if (failed > before) std::printf("again: fuzz_stream 1 %lld\n", static_cast<long long>(i));
  }
  std::printf("%lld lives: %lld calls refused, %lld answered rightly, %lld streams too large\n",
              static_cast<long long>(lives), static_cast<long long>(refused),
              static_cast<long long>(accepted), static_cast<long long>(too_large));
  return finish("fuzz_stream");
}
