// Vec<T>: a register of floats or doubles of the ISA being compiled. The arithmetic that compilers
// generate for vector types is written once here; vec_<isa>.h gives the width and what needs
// intrinsics: fused multiply-add, partial loads and stores, scaling by a power of two.
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

// expm1(r) = r + r^2 q(r) for |r| <= ln(2) / 2, q a near-minimax polynomial (Remez exchange on the
// error relative to r). ln2 is split so that n * ln2_high is exact for every n that occurs; adding
// `round` (1.5 * 2^(mantissa bits)) and subtracting it rounds to an integer.
template <>
struct ExpCoefficients<float> {
  static constexpr float q[] = {0.50000000621f, 0.166665427944f, 0.0416662813041f,
                                0.00836661057825f, 0.00139465043208f};
  static constexpr float log2e = 1.44269504f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr float round = 12582912.0f;
  static constexpr float sigmoid_low = -89.0f;  // exp(89) overflows: sigmoid(-89) is 0
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

// x = n ln2 + r; returns expm1(r) and sets n.
template <class T>
FASTRNN_HD Vec<T> reduced_expm1(Vec<T> x, Vec<T>& n) {
  using E = ExpCoefficients<T>;
  using V = Vec<T>;
  n = fma(x, V(E::log2e), V(E::round)) - V(E::round);
  const V r = fnma(n, V(E::ln2_low), fnma(n, V(E::ln2_high), x));
  constexpr int degree = sizeof E::q / sizeof(T) - 1;
  V q = V(E::q[degree]);
#pragma GCC unroll 16
  for (int i = degree - 1; i >= 0; --i) q = fma(q, r, V(E::q[i]));
  return fma(q, r * r, r);
}

template <class T>
FASTRNN_HD Vec<T> sigmoid(Vec<T> x) {
  using V = Vec<T>;
  using E = ExpCoefficients<T>;
  const Native<T> t = native_max(V(-E::sigmoid_high).v, native_min(V(-E::sigmoid_low).v, -x.v));
  V n;
  const V p = reduced_expm1<T>(t, n) + V(1);
  return V(1) / (V(1) + V(native_scale(p.v, n.v)));
}

// tanh|x| = e / (e + 2) with e = expm1(2|x|), which neither cancels nor overflows.
template <class T>
FASTRNN_HD Vec<T> tanh(Vec<T> x) {
  using V = Vec<T>;
  constexpr T limit = ExpCoefficients<T>::tanh_limit;
  const Native<T> magnitude = native_abs(x.v);
  V n;
  const V p = reduced_expm1<T>(native_min(V(limit).v, magnitude + magnitude), n);
  const V s = native_power_of_two(n.v);
  const V e = fma(s, p, s - V(1));
  return native_copy_sign((e / (e + V(2))).v, x.v);
}

}  // namespace fastrnn::FASTRNN_ISA
