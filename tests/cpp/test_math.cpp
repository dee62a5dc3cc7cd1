// The error of every ISA's sigmoid and tanh, in units in the last place of the exact result: over
// all floats of the exponents where the functions bend, a sample of all others, and many doubles.
#include <fastrnn/fastrnn.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <limits>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace {

using fastrnn::Dtype;
using fastrnn::Function;

// For results that are normal numbers; csrc/math.h promises 3. The floats' bounds are what is
// reached, since all floats that matter are tried; samples of 8e7 doubles reached 2.55 and 2.30.
struct Limit {
  double tanh, sigmoid;
};
constexpr Limit kFloatUlp = {2.44, 2.49}, kDoubleUlp = {2.65, 2.4};
// Of the smallest normal number, for results below it: sigmoid is 0 where exp(-x) is 2^127.5 and
// more, in double 2^1023.5: a power of two made beside the polynomial is infinite there.
constexpr double kTinyError = 0.354;

struct Worst {
  double ulp = 0, at = 0, tiny = 0;
};

// Spacing of T's numbers at a positive value.
double spacing(double value, float) {
  const int e = value < FLT_MIN ? -126 : std::ilogb(static_cast<float>(value));
  return std::ldexp(1.0, e - 23);
}
double spacing(double value, double) {
  return std::ldexp(1.0, std::max(value < DBL_MIN ? -1022 : std::ilogb(value), -1022) - 52);
}

// The exact values at +x and -x, x >= 0, in a type with more digits.
template <class Wide>
struct Exact {
  Wide tanh, sigmoid, sigmoid_of_minus;
  explicit Exact(Wide x) : tanh(std::tanh(x)) {
    const Wide e = std::exp(-x);
    sigmoid = 1 / (1 + e), sigmoid_of_minus = e / (1 + e);
  }
};

template <class T>
struct Types;
template <>
struct Types<float> {
  using Wide = double;
  using Bits = uint32_t;
  static constexpr Dtype dtype = Dtype::kFloat32;
};
template <>
struct Types<double> {
  using Wide = long double;
  using Bits = uint64_t;
  static constexpr Dtype dtype = Dtype::kFloat64;
};

template <class T>
T from_bits(typename Types<T>::Bits bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <class T>
bool same(T a, T b) {
  return !std::memcmp(&a, &b, sizeof a);
}

// Collects values x >= 0 and measures them, with both signs, on all ISAs at once.
template <class T>
class Meter {
 public:
  using Wide = typename Types<T>::Wide;

  Meter() {
    for (const fastrnn::IsaEntry& isa : fastrnn::isa_list())
      if (isa.supported) isas_.push_back(isa);
    worst_.resize(isas_.size());
  }
  void add(T x) {
    x_.push_back(x), x_.push_back(-x);
    if (x_.size() >= 8192) flush();
  }
  void flush() {
    const size_t n = x_.size();
    std::vector<Exact<Wide>> exact;
    std::vector<double> unit(3 * n / 2);
    for (size_t i = 0; i < n; i += 2) {
      exact.emplace_back(Wide(x_[i]));
      const Exact<Wide>& e = exact.back();
      unit[i / 2 * 3] = spacing(double(e.tanh), T());
      unit[i / 2 * 3 + 1] = spacing(double(e.sigmoid), T());
      unit[i / 2 * 3 + 2] = spacing(double(e.sigmoid_of_minus), T());
    }
    std::vector<T> t(n), s(n);
    for (size_t k = 0; k < isas_.size(); ++k) {
      const fastrnn::Kernels& kernels = isas_[k].kernels();
      kernels.map(Function::kTanh, Types<T>::dtype, x_.data(), t.data(), int64_t(n));
      kernels.map(Function::kSigmoid, Types<T>::dtype, x_.data(), s.data(), int64_t(n));
      bool odd = true, bounded = true;
      for (size_t i = 0; i < n; i += 2) {
        const Exact<Wide>& e = exact[i / 2];
        const double* u = &unit[i / 2 * 3];
        odd &= same(t[i + 1], -t[i]);
        bounded &=
            t[i] >= 0 && t[i] <= 1 && s[i] >= 0 && s[i] <= 1 && s[i + 1] >= 0 && s[i + 1] <= 1;
        note(worst_[k].tanh, x_[i], t[i], e.tanh, u[0]);
        note(worst_[k].sigmoid, x_[i], s[i], e.sigmoid, u[1]);
        note(worst_[k].sigmoid, -x_[i], s[i + 1], e.sigmoid_of_minus, u[2]);
      }
      EXPECT(odd, "tanh is not odd on " << isas_[k].name << " near " << x_[0]);
      EXPECT(bounded, "out of [0, 1] on " << isas_[k].name << " near " << x_[0]);
    }
    values_ += int64_t(n);
    x_.clear();
  }
  void report() {
    flush();
    for (size_t k = 0; k < isas_.size(); ++k) {
      const Limit& limit = sizeof(T) == 4 ? kFloatUlp : kDoubleUlp;
      report(isas_[k].name, "tanh", worst_[k].tanh, limit.tanh);
      report(isas_[k].name, "sigmoid", worst_[k].sigmoid, limit.sigmoid);
    }
  }

 private:
  void note(Worst& worst, T x, T got, Wide exact, double unit) {
    const double error = double(std::fabs(Wide(got) - exact));
    if (exact < std::numeric_limits<T>::min() && x < 0) {
      worst.tiny = std::fmax(worst.tiny, error / std::numeric_limits<T>::min());
    } else if (!(error <= worst.ulp * unit)) {
      worst.ulp = error / unit, worst.at = x;
    }
  }
  void report(const char* isa, const char* function, const Worst& worst, double limit) {
    std::printf(
        "%-8s %s%d: %.4f ulp at %.17g (limit %.2f); below the smallest normal number %.3g of "
        "it; %lld values\n",
        isa, function, int(8 * sizeof(T)), worst.ulp, worst.at, limit, worst.tiny,
        static_cast<long long>(values_));
    EXPECT(worst.ulp <= limit, isa << ' ' << function << ": " << worst.ulp << " ulp");
    EXPECT(worst.tiny <= kTinyError, isa << ' ' << function << ": tiny results " << worst.tiny);
  }

  struct Pair {
    Worst tanh, sigmoid;
  };
  std::vector<fastrnn::IsaEntry> isas_;
  std::vector<Pair> worst_;
  std::vector<T> x_;
  int64_t values_ = 0;
};

void measure_floats() {
  Meter<float> meter;
  const uint32_t every = test::quick() ? 61 : 1;
  std::vector<int> exponents = {-20};
  for (int e = -12; e <= 6; ++e) exponents.push_back(e);
  for (int e : exponents)
    for (uint32_t m = 0; m < 1u << 23; m += every)
      meter.add(from_bits<float>(uint32_t(e + 127) << 23 | m));
  for (uint32_t m = 0; m < 1u << 23; m += 97 * every) meter.add(from_bits<float>(m));
  for (uint32_t bits = 0; bits < 0x7f800000u; bits += 1009 * every)
    meter.add(from_bits<float>(bits));
  meter.report();
}

void measure_doubles() {
  Meter<double> meter;
  test::Random random(3);
  const auto fraction = [&] {
    return (random.bits() + random.bits() / 4294967296.0) / 4294967296.0;
  };
  const int each = test::quick() ? 200 : 10000;
  for (int e = -60; e <= 10; ++e)
    for (int i = 0; i < each; ++i) meter.add(std::ldexp(1 + fraction(), e));
  for (int i = 0; i < 100 * each; ++i) meter.add(fraction() * 20);
  for (int i = 0; i < 10 * each; ++i) meter.add(fraction() * 760);
  for (int i = 0; i < each; ++i)
    meter.add(
        from_bits<double>((uint64_t(random.bits()) << 32 | random.bits()) % 0x7ff0000000000000u));
  meter.report();
}

// Relative accuracy near 0 is exactness where the functions are their first term.
template <class T>
void check_special_values(const fastrnn::IsaEntry& isa) {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const T most = std::numeric_limits<T>::max(), least = std::numeric_limits<T>::denorm_min();
  const T small = std::numeric_limits<T>::min();
  struct Row {
    T x, tanh, sigmoid;
  };
  const T half = T(0.5);
  const Row rows[] = {{T(0), T(0), half},     {-T(0), -T(0), half},   {inf, 1, 1},
                      {-inf, -1, 0},          {most, 1, 1},           {-most, -1, 0},
                      {least, least, half},   {-least, -least, half}, {small, small, half},
                      {-small, -small, half}, {T(40), 1, 1},          {-T(40), -1, -1},
                      {nan, nan, nan},        {-nan, nan, nan}};
  const auto agrees = [](T got, T expected) {
    return std::isnan(expected) ? std::isnan(got) : same(got, expected);
  };
  // In every lane, and in tails of every length.
  constexpr int kMost = 40;
  for (const Row& row : rows)
    for (int n = 1; n <= kMost; ++n) {
      T x[kMost + 1], t[kMost + 1], s[kMost + 1];
      for (int i = 0; i <= kMost; ++i) x[i] = i == n - 1 ? row.x : T(0.25), t[i] = s[i] = T(-7);
      isa.kernels().map(Function::kTanh, Types<T>::dtype, x, t, n);
      isa.kernels().map(Function::kSigmoid, Types<T>::dtype, x, s, n);
      EXPECT(agrees(t[n - 1], row.tanh), isa.name << " tanh(" << row.x << ") = " << t[n - 1]);
      if (row.sigmoid >= 0 || std::isnan(row.sigmoid))
        EXPECT(agrees(s[n - 1], row.sigmoid),
               isa.name << " sigmoid(" << row.x << ") = " << s[n - 1]);
      EXPECT(t[n] == T(-7) && s[n] == T(-7), isa.name << " wrote past " << n << " values");
      for (int i = 0; i + 1 < n; ++i)
        EXPECT(std::fabs(t[i] - std::tanh(T(0.25))) < 1e-6,
               isa.name << " lane " << i << " of " << n);
    }
}

}  // namespace

int main() {
  for (const fastrnn::IsaEntry& isa : fastrnn::isa_list()) {
    if (!isa.supported) continue;
    check_special_values<float>(isa);
    check_special_values<double>(isa);
  }
  std::printf("NaN, infinities, zeros, the largest and the smallest numbers in every lane\n");
  measure_floats();
  measure_doubles();
  return test::finish("test_math");
}
