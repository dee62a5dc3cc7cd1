// The parts of Vec that plain vector types express on any machine: bit tricks on the IEEE formats.
// Each vec_<isa>.h includes this after defining kVectorBytes; where its processor has an
// instruction for one of these, it overloads the template by functions of Native<float> and
// Native<double>.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

namespace fastrnn::FASTRNN_ISA {

template <class T>
struct Integer;
template <>
struct Integer<float> {
  using type = uint32_t;
  static constexpr int kMantissa = 23, kBias = 127;
};
template <>
struct Integer<int32_t> {
  using type = uint32_t;
};
template <>
struct Integer<double> {
  using type = uint64_t;
  static constexpr int kMantissa = 52, kBias = 1023;
};

template <class T>
struct NativeType {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef typename Integer<T>::type bits __attribute__((vector_size(kVectorBytes)));
};
template <class T>
using Native = typename NativeType<T>::type;
template <class T>
using Bits = typename NativeType<T>::bits;

template <class N>
using ScalarOf = typename std::remove_reference<decltype(std::declval<N&>()[0])>::type;

template <class N>
FASTRNN_HD N native_abs(N x) {
  using T = ScalarOf<N>;
  constexpr auto sign = typename Integer<T>::type(1) << (8 * sizeof(T) - 1);
  return (N)((Bits<T>)x & ~sign);
}

template <class N>
FASTRNN_HD N native_copy_sign(N x, N sign_of) {
  using T = ScalarOf<N>;
  constexpr auto sign = typename Integer<T>::type(1) << (8 * sizeof(T) - 1);
  return (N)((Bits<T>)x | ((Bits<T>)sign_of & sign));
}

// 1 / d for d from 1 to infinity.
template <class N>
FASTRNN_HD N native_reciprocal(N d) {
  return 1 / d;
}

// NaN in b comes out; the ISAs' own instructions do the same.
template <class N>
FASTRNN_HD N native_min(N a, N b) {
  return a < b ? a : b;
}
template <class N>
FASTRNN_HD N native_max(N a, N b) {
  return a > b ? a : b;
}

// 2^n, n integral, in the range of normal numbers or the next one, which is infinity.
template <class N>
FASTRNN_HD N native_power_of_two(N n) {
  using T = ScalarOf<N>;
  using I = Integer<T>;
  // n + round leaves n in the low mantissa bits, without a float-to-integer conversion
  constexpr T round = T(typename I::type(3) << (I::kMantissa - 1));
  return (N)(((Bits<T>)(n + round) + I::kBias) << I::kMantissa);
}

// Of each 64-bit word the product of its halves.
template <class W>
FASTRNN_HD W native_product_of_halves(W words) {
  return (words & 0xffffffffu) * (words >> 32);
}

// As many 16-bit numbers as there are floats in a register.
typedef uint16_t HalfBits __attribute__((vector_size(kVectorBytes / 2)));

template <class H>
FASTRNN_HD Bits<float> native_words_of_halves(H h) {
  return __builtin_convertvector(h, Bits<float>);
}
template <class H>
FASTRNN_HD HalfBits native_load_halves(const H* from, int n) {
  HalfBits h{};
  for (int i = 0; i < n; ++i) h[i] = from[i];
  return h;
}
// Words below 2^16.
template <class W>
FASTRNN_HD HalfBits native_halves_of_words(W words) {
  return __builtin_convertvector(words, HalfBits);
}

template <class H>
FASTRNN_HD Native<float> native_from_float16(H h) {
  const Bits<float> b = native_words_of_halves(h);
  const Native<float> finite = (Native<float>)((b & 0x7fff) << 13) * 0x1p112f;
  const Bits<float> special = (Bits<float>)((b & 0x7c00) == 0x7c00) & 0x7f800000u;
  return (Native<float>)((Bits<float>)finite | special | ((b & 0x8000) << 16));
}

// To the nearest, ties to even.
template <class N>
FASTRNN_HD HalfBits native_to_float16(N x) {
  const Bits<float> sign = (Bits<float>)x & 0x80000000u, m = (Bits<float>)x & 0x7fffffffu;
  const Bits<float> normal = (m + 0xfffu + ((m >> 13) & 1) - (112u << 23)) >> 13;
  // Adding 0.5 leaves multiples of 2^-24, the distance of subnormal halves, in the low bits.
  const Bits<float> subnormal = (Bits<float>)((Native<float>)m + 0.5f) - 0x3f000000u;
  const Bits<float> infinite = (Bits<float>)(m > 0x7f800000u) & 0x200u;
  Bits<float> h = m < 0x38800000u ? subnormal : normal;
  h = m >= 0x477ff000u ? infinite | 0x7c00u : h;
  return native_halves_of_words(h | (sign >> 16));
}

// For each 32-bit lane the sum of the products of its two 16-bit numbers.
template <class S>
FASTRNN_HD Native<int32_t> native_dot_pairs(S a, S b) {
  const Native<int32_t> x = (Native<int32_t>)a, y = (Native<int32_t>)b;
  return (x << 16 >> 16) * (y << 16 >> 16) + (x >> 16) * (y >> 16);
}

// Elements places[i] of the 32 at p.
template <class T>
FASTRNN_HD Native<T> native_lookup(const T* p, const uint8_t* places) {
  Native<T> r{};
#pragma GCC unroll 16
  for (size_t i = 0; i < sizeof r / sizeof(T); ++i) r[i] = p[places[i]];
  return r;
}

template <class T>
FASTRNN_HD Native<T> native_load(const T* p, int n) {
  Native<T> r{};
  for (int i = 0; i < n; ++i) r[i] = p[i];
  return r;
}

template <class T>
FASTRNN_HD void native_store(T* p, Native<T> v, int n) {
  for (int i = 0; i < n; ++i) p[i] = v[i];
}

}  // namespace fastrnn::FASTRNN_ISA
