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
  HalfBits h{};
  if (n == Vec<float>::kWidth)
    __builtin_memcpy(&h, from, sizeof h);
  else
    for (int i = 0; i < n; ++i) h[i] = static_cast<const uint16_t*>(from)[i];
  return h;
}
FASTRNN_HD void store_half(void* to, HalfBits h, int n) {
  if (n == Vec<float>::kWidth)
    __builtin_memcpy(to, &h, sizeof h);
  else
    for (int i = 0; i < n; ++i) static_cast<uint16_t*>(to)[i] = h[i];
}

FASTRNN_HD Native<float> widen(Bfloat16, HalfBits h) {
  return (Native<float>)(__builtin_convertvector(h, Bits<float>) << 16);
}
FASTRNN_HD Native<float> widen(Float16, HalfBits h) { return native_from_float16(h); }

// To the nearest, ties to even; NaN stays NaN.
FASTRNN_HD HalfBits narrow(Bfloat16, Native<float> x) {
  const Bits<float> b = (Bits<float>)x;
  const Bits<float> rounded = (b + 0x7fffu + ((b >> 16) & 1)) >> 16;
  const Bits<float> h = (b & 0x7fffffffu) > 0x7f800000u ? b >> 16 | 0x40u : rounded;
  return __builtin_convertvector(h, HalfBits);
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
  return (Native<float>)(__builtin_convertvector(low, Bits<float>) |
                         __builtin_convertvector(high, Bits<float>) << 16);
}

// The value that is left when v is stored as S.
template <class S, class V>
FASTRNN_HD V rounded_to(V v) {
  if constexpr (sizeof(S) == 2)
    return widen(S(), narrow(S(), v.v));
  else
    return v;
}

}  // namespace fastrnn::FASTRNN_ISA
