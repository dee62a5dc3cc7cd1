// Vec<T>: a register of floats or doubles of the ISA being compiled. The arithmetic that compilers
// generate for vector types is written once here; vec_<isa>.h gives the width and what needs
// intrinsics: fused multiply-add, partial loads and stores, powers of two, reciprocals.
#pragma once

#include <cstddef>
#include <cstdint>

#include "../math.h"

#define FASTRNN_QUOTE(text) #text
#define FASTRNN_VEC_FILE(isa) FASTRNN_QUOTE(vec_##isa.h)
#define FASTRNN_VEC_HEADER(isa) FASTRNN_VEC_FILE(isa)
#include FASTRNN_VEC_HEADER(FASTRNN_ISA)  // Native<T>, kVectorBytes, kRegisters, native_*

namespace fastrnn::FASTRNN_ISA {

template <class T>
struct Vec {
  static constexpr int kWidth = kVectorBytes / sizeof(T);
  Native<T> v;

  Vec() = default;
  FASTRNN_HD Vec(Native<T> native) : v(native) {}
  // Minus, since x - 0 is x for every x: adding 0 would be an instruction beside the broadcast, as
  // -0 + 0 is 0.
  FASTRNN_HD explicit Vec(T value) : v(value - Native<T>{}) {}
  FASTRNN_HD explicit Vec(int value) : Vec(T(value)) {}

  FASTRNN_HD static Vec load(const T* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  FASTRNN_HD void store(T* p) const { __builtin_memcpy(p, &v, sizeof v); }
  // The first n elements, 0 < n <= kWidth; the others are zero, and memory past n is not touched.
  FASTRNN_HD static Vec load(const T* p, int n) {
    return n == kWidth ? load(p) : native_load(p, n);
  }
  FASTRNN_HD void store(T* p, int n) const { n == kWidth ? store(p) : native_store(p, v, n); }

  FASTRNN_HD friend Vec operator+(Vec a, Vec b) { return a.v + b.v; }
  FASTRNN_HD friend Vec operator-(Vec a, Vec b) { return a.v - b.v; }
  FASTRNN_HD friend Vec operator*(Vec a, Vec b) { return a.v * b.v; }
  FASTRNN_HD friend Vec operator/(Vec a, Vec b) { return a.v / b.v; }
  FASTRNN_HD friend Vec fma(Vec a, Vec b, Vec c) { return native_fma(a.v, b.v, c.v); }
  FASTRNN_HD friend Vec fnma(Vec a, Vec b, Vec c) { return native_fnma(a.v, b.v, c.v); }
  FASTRNN_HD friend Vec relu(Vec x) { return x.v <= T(0) ? Native<T>{} : x.v; }
  FASTRNN_HD friend Vec relu_backward(Vec y, Vec dy) { return y.v <= T(0) ? Native<T>{} : dy.v; }
};

// Sums of products of 8-bit numbers.
template <>
struct Vec<int32_t> {
  static constexpr int kWidth = kVectorBytes / sizeof(int32_t);
  Native<int32_t> v;

  FASTRNN_HD static Vec load(const int32_t* p) {
    Vec r;
    __builtin_memcpy(&r.v, p, sizeof r.v);
    return r;
  }
  FASTRNN_HD void store(int32_t* p) const { __builtin_memcpy(p, &v, sizeof v); }
  FASTRNN_HD friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
};

template <class T>
struct ExpCoefficients;

// expm1(r) = r + r^2 q(r) for |r| <= ln(2) / 2, q a near-minimax polynomial in the error relative
// to r. That lies far below rounding, since what does not average out adds up in long sums. ln2 is
// split so that n * ln2_high is exact for every n that occurs; adding `round` (1.5 * 2^(mantissa
// bits)) and subtracting it rounds to an integer.
template <>
struct ExpCoefficients<float> {
  static constexpr float q[] = {0.5f,
                                0.166666671634f,
                                0.0416664890945f,
                                0.0083332080394f,
                                0.00139326741919f,
                                0.000199442671146f};
  static constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float round = 12582912.0f;
  static constexpr float sigmoid_low = -89.0f;  // 2^128 is infinite: sigmoid(-89) is 0
  static constexpr float sigmoid_high = 86.0f;  // exp(-86) is normal: sigmoid(86) rounds to 1
  static constexpr float tanh_limit = 20.0f;    // of 2|x|: tanh(10) rounds to 1
};
template <>
struct ExpCoefficients<double> {
  static constexpr double q[] = {
      0.49999999999999999986,   0.16666666666666676639,   0.041666666666666701453,
      0.0083333333333215783977, 0.0013888888888866797667, 0.00019841269886266013532,
      2.4801587360632312118e-5, 2.7557244062133642197e-6, 2.755724269572473507e-7,
      2.5109090348885747523e-8, 2.0924463016416609307e-9};
  static constexpr double log2e = 1.4426950408889634074, ln2_high = 0.693147180369123816490,
                          ln2_low = 1.90821492927058770002e-10;
  static constexpr double round = 6755399441055744.0;
  static constexpr double sigmoid_low = -710.0, sigmoid_high = 700.0;
  static constexpr double tanh_limit = 40.0;
};

// Calls f(begin), ..., f(end - 1).
template <int begin, int end, class F>
FASTRNN_HD void for_each(const F& f) {
#pragma GCC unroll 16
  for (int i = begin; i < end; ++i) f(i);
}

// sigmoid of the first S of N vectors and tanh of the others, in place:
//   sigmoid(x) = 1 / (1 + e^-x);
//   tanh|x| = e / (e + 2) with e = expm1(2|x|), which neither cancels nor overflows.
// Each operation is done for all before the next one: of one chain that waits for itself after the
// other, processors start no more than their schedulers hold.
template <int S, class T, int N>
FASTRNN_HD void sigmoids_and_tanhs(Vec<T> (&x)[N]) {
  using E = ExpCoefficients<T>;
  using V = Vec<T>;
  V r[N], n[N], square[N], q[N];
  for_each<0, S>([&](int i) { r[i] = native_min(V(-E::sigmoid_low).v, -x[i].v); });
  for_each<S, N>([&](int i) { r[i] = native_abs(x[i].v); });
  for_each<0, S>([&](int i) { r[i] = native_max(V(-E::sigmoid_high).v, r[i].v); });
  for_each<S, N>([&](int i) { r[i] = native_min(V(E::tanh_limit).v, (r[i] + r[i]).v); });

  // What is in r is n ln2 + r with |r| <= ln2 / 2; then expm1(r) = q r^2 + r.
  for_each<0, N>([&](int i) { n[i] = fma(r[i], V(E::log2e), V(E::round)); });
  for_each<0, N>([&](int i) { n[i] = n[i] - V(E::round); });
  for_each<0, N>([&](int i) { r[i] = fnma(n[i], V(E::ln2_high), r[i]); });
  for_each<0, N>([&](int i) { r[i] = fnma(n[i], V(E::ln2_low), r[i]); });
  // In pairs of terms, half as long a chain as one by one.
  constexpr int terms = sizeof E::q / sizeof(T), last = terms - 1;
  for_each<0, N>([&](int i) {
    square[i] = r[i] * r[i];
    q[i] = terms % 2 ? V(E::q[last]) : fma(V(E::q[last]), r[i], V(E::q[last - 1]));
  });
#pragma GCC unroll 8
  for (int k = terms - 4 + terms % 2; k >= 0; k -= 2) {
    V pair[N];
    for_each<0, N>([&](int i) { pair[i] = fma(V(E::q[k + 1]), r[i], V(E::q[k])); });
    for_each<0, N>([&](int i) { q[i] = fma(q[i], square[i], pair[i]); });
  }

  for_each<0, N>([&](int i) { q[i] = fma(q[i], square[i], r[i]); });
  for_each<0, S>([&](int i) { q[i] = q[i] + V(1); });
  for_each<0, N>([&](int i) { n[i] = native_power_of_two(n[i].v); });
  for_each<0, S>([&](int i) { q[i] = fma(q[i], n[i], V(1)); });
  for_each<S, N>([&](int i) { q[i] = fma(n[i], q[i], n[i] - V(1)); });
  for_each<0, S>([&](int i) { x[i] = native_reciprocal(q[i].v); });
  for_each<S, N>([&](int i) { x[i] = native_copy_sign((q[i] / (q[i] + V(2))).v, x[i].v); });
}

template <class T>
FASTRNN_HD Vec<T> sigmoid(Vec<T> x) {
  Vec<T> y[] = {x};
  sigmoids_and_tanhs<1>(y);
  return y[0];
}

template <class T>
FASTRNN_HD Vec<T> tanh(Vec<T> x) {
  Vec<T> y[] = {x};
  sigmoids_and_tanhs<0>(y);
  return y[0];
}

template <int S, class T, int N>
FASTRNN_HD void activate(Arr<Vec<T>, N>& x) {
  sigmoids_and_tanhs<S>(x.values);
}

}  // namespace fastrnn::FASTRNN_ISA
