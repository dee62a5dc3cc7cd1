// Numbers as callers store them, read into registers of the numbers that kernels compute with.
#pragma once

#include "vec.h"

namespace fastrnn::FASTRNN_ISA {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FASTRNN_HD HalfBits load_half(const void* from, int n) {
  if (n < Vec<float>::kWidth) return native_load_halves(static_cast<const uint16_t*>(from), n);
  HalfBits h;
  __builtin_memcpy(&h, from, sizeof h);
  return h;
}
FASTRNN_HD void store_half(void* to, HalfBits h, int n) {
  if (n == Vec<float>::kWidth)
    __builtin_memcpy(to, &h, sizeof h);
  else
    for (int i = 0; i < n; ++i) static_cast<uint16_t*>(to)[i] = h[i];
}

FASTRNN_HD Native<float> widen(Bfloat16, HalfBits h) {
  return (Native<float>)(native_words_of_halves(h) << 16);
}
FASTRNN_HD Native<float> widen(Float16, HalfBits h) { return native_from_float16(h); }

// The upper half is x to the nearest, ties to even; NaN stays NaN.
FASTRNN_HD Bits<float> round_to_upper_half(Native<float> x) {
  const Bits<float> b = (Bits<float>)x, odd = b << 15 >> 31;
  return (b + odd + 0x7fffu) | (Bits<float>)(x != x);
}
FASTRNN_HD HalfBits narrow(Bfloat16, Native<float> x) {
  return native_halves_of_words(round_to_upper_half(x) >> 16);
}
FASTRNN_HD HalfBits narrow(Float16, Native<float> x) { return native_to_float16(x); }

// The first n elements, 0 < n <= kWidth; the others are zero, and memory past n is not touched.
FASTRNN_HD Vec<float> load_value(const float* p, int n) { return Vec<float>::load(p, n); }
FASTRNN_HD Vec<double> load_value(const double* p, int n) { return Vec<double>::load(p, n); }
template <class S>
FASTRNN_HD Vec<float> load_value(const S* p, int n) {
  return widen(S(), load_half(p, n));
}

FASTRNN_HD void store_value(float* p, Vec<float> v, int n) { v.store(p, n); }
FASTRNN_HD void store_value(double* p, Vec<double> v, int n) { v.store(p, n); }
template <class S>
FASTRNN_HD void store_value(S* p, Vec<float> v, int n) {
  store_half(p, narrow(S(), v.v), n);
}

// Words of two numbers each.
FASTRNN_HD Native<float> interleave(HalfBits low, HalfBits high) {
  return (Native<float>)(native_words_of_halves(low) | native_words_of_halves(high) << 16);
}

// The value that is left when v is stored as S.
template <class S, class V>
FASTRNN_HD V rounded_to(V v) {
  if constexpr (std::is_same_v<S, Bfloat16>)
    return (Native<float>)(round_to_upper_half(v.v) >> 16 << 16);
  else if constexpr (sizeof(S) == 2)
    return widen(S(), narrow(S(), v.v));
  else
    return v;
}

}  // namespace fastrnn::FASTRNN_ISA
