// AVX-512 F, BW, DQ, VL: 32 registers of 64 bytes, masks, and estimates of reciprocals.
#pragma once

#include <immintrin.h>

namespace fastrnn::FASTRNN_ISA {
inline constexpr int kVectorBytes = 64;
inline constexpr int kRegisters = 32;
}  // namespace fastrnn::FASTRNN_ISA

#include "vec_generic.h"

namespace fastrnn::FASTRNN_ISA {

FASTRNN_HD Native<float> native_fma(Native<float> a, Native<float> b, Native<float> c) {
  return _mm512_fmadd_ps(a, b, c);
}
FASTRNN_HD Native<double> native_fma(Native<double> a, Native<double> b, Native<double> c) {
  return _mm512_fmadd_pd(a, b, c);
}
FASTRNN_HD Native<float> native_fnma(Native<float> a, Native<float> b, Native<float> c) {
  return _mm512_fnmadd_ps(a, b, c);
}
FASTRNN_HD Native<double> native_fnma(Native<double> a, Native<double> b, Native<double> c) {
  return _mm512_fnmadd_pd(a, b, c);
}
// Masked forms with all lanes on: the plain ones read an undefined register in GCC's headers, which
// it warns of.
FASTRNN_HD Native<float> native_min(Native<float> a, Native<float> b) {
  return _mm512_maskz_min_ps(0xffff, a, b);
}
FASTRNN_HD Native<double> native_min(Native<double> a, Native<double> b) {
  return _mm512_maskz_min_pd(0xff, a, b);
}
FASTRNN_HD Native<float> native_max(Native<float> a, Native<float> b) {
  return _mm512_maskz_max_ps(0xffff, a, b);
}
FASTRNN_HD Native<double> native_max(Native<double> a, Native<double> b) {
  return _mm512_maskz_max_pd(0xff, a, b);
}
FASTRNN_HD Native<float> native_power_of_two(Native<float> n) {
  return _mm512_maskz_scalef_ps(0xffff, Native<float>{} + 1, n);
}
FASTRNN_HD Native<double> native_power_of_two(Native<double> n) {
  return _mm512_maskz_scalef_pd(0xff, Native<double>{} + 1, n);
}
// The maths of a cell waits for the divider. An estimate that is exact to 14 bits, and two terms of
// the series in its error: one alone would leave each result a little too small, and what has one
// sign adds up in long sums. Of infinity, whose estimate is zero, it would make no number.
FASTRNN_HD Native<float> native_reciprocal(Native<float> d) {
  const Native<float> r = _mm512_maskz_rcp14_ps(0xffff, d);
  const Native<float> e = _mm512_fnmadd_ps(d, r, Native<float>{} + 1);
  const __mmask16 finite = _mm512_cmp_ps_mask(d, Native<float>{} + __builtin_inff(), _CMP_NEQ_UQ);
  return _mm512_maskz_fmadd_ps(finite, _mm512_fmadd_ps(e, e, e), r, r);
}
FASTRNN_HD Native<float> native_load(const float* p, int n) {
  return _mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p);
}
FASTRNN_HD Native<double> native_load(const double* p, int n) {
  return _mm512_maskz_loadu_pd(__mmask8((1u << n) - 1), p);
}
FASTRNN_HD void native_store(float* p, Native<float> v, int n) {
  _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), v);
}
FASTRNN_HD void native_store(double* p, Native<double> v, int n) {
  _mm512_mask_storeu_pd(p, __mmask8((1u << n) - 1), v);
}

FASTRNN_HD HalfBits native_load_halves(const uint16_t* from, int n) {
  return (HalfBits)_mm256_maskz_loadu_epi16(__mmask16((1u << n) - 1), from);
}
FASTRNN_HD Native<float> native_from_float16(HalfBits h) {
  return _mm512_maskz_cvtph_ps(0xffff, (__m256i)h);
}
FASTRNN_HD HalfBits native_to_float16(Native<float> x) {
  return (HalfBits)_mm512_maskz_cvtps_ph(0xffff, x, _MM_FROUND_TO_NEAREST_INT);
}

FASTRNN_HD Native<float> native_lookup(const float* p, const uint8_t* places) {
  __m128i bytes;
  __builtin_memcpy(&bytes, places, sizeof bytes);
  return _mm512_permutex2var_ps(_mm512_loadu_ps(p), _mm512_maskz_cvtepu8_epi32(0xffff, bytes),
                                _mm512_loadu_ps(p + 16));
}
FASTRNN_HD Native<double> native_lookup(const double* p, const uint8_t* places) {
  int64_t bytes;
  __builtin_memcpy(&bytes, places, sizeof bytes);
  const __m512i at = _mm512_maskz_cvtepu8_epi64(0xff, _mm_cvtsi64_si128(bytes));
  const __m512d low = _mm512_permutex2var_pd(_mm512_loadu_pd(p), at, _mm512_loadu_pd(p + 8));
  const __m512d high = _mm512_permutex2var_pd(_mm512_loadu_pd(p + 16), at, _mm512_loadu_pd(p + 24));
  return _mm512_mask_blend_pd(_mm512_test_epi64_mask(at, _mm512_set1_epi64(16)), low, high);
}

// GCC multiplies words of 64 bits, three operations, though it sees that half of them are zeros.
FASTRNN_HD Bits<double> native_product_of_halves(Bits<double> words) {
  return (Bits<double>)_mm512_maskz_mul_epu32(0xff, (__m512i)words, (__m512i)(words >> 32));
}

typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));
FASTRNN_HD Native<int32_t> native_dot_pairs(Shorts a, Shorts b) {
  return (Native<int32_t>)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}

}  // namespace fastrnn::FASTRNN_ISA
