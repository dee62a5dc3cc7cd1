// AVX2 with FMA: 16 registers of 32 bytes.
#pragma once

#include <immintrin.h>

namespace fastrnn::FASTRNN_ISA {
inline constexpr int kVectorBytes = 32;
inline constexpr int kRegisters = 16;
}  // namespace fastrnn::FASTRNN_ISA

#include "vec_generic.h"

namespace fastrnn::FASTRNN_ISA {

FASTRNN_HD Native<float> native_fma(Native<float> a, Native<float> b, Native<float> c) {
  return _mm256_fmadd_ps(a, b, c);
}
FASTRNN_HD Native<double> native_fma(Native<double> a, Native<double> b, Native<double> c) {
  return _mm256_fmadd_pd(a, b, c);
}
FASTRNN_HD Native<float> native_fnma(Native<float> a, Native<float> b, Native<float> c) {
  return _mm256_fnmadd_ps(a, b, c);
}
FASTRNN_HD Native<double> native_fnma(Native<double> a, Native<double> b, Native<double> c) {
  return _mm256_fnmadd_pd(a, b, c);
}
FASTRNN_HD Native<float> native_min(Native<float> a, Native<float> b) {
  return _mm256_min_ps(a, b);
}
FASTRNN_HD Native<double> native_min(Native<double> a, Native<double> b) {
  return _mm256_min_pd(a, b);
}
FASTRNN_HD Native<float> native_max(Native<float> a, Native<float> b) {
  return _mm256_max_ps(a, b);
}
FASTRNN_HD Native<double> native_max(Native<double> a, Native<double> b) {
  return _mm256_max_pd(a, b);
}

FASTRNN_HD Bits<double> native_product_of_halves(Bits<double> words) {
  return (Bits<double>)_mm256_mul_epu32((__m256i)words, (__m256i)(words >> 32));
}

// Element i is selected when i < n.
FASTRNN_HD __m256i first_lanes(const float*, int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
FASTRNN_HD __m256i first_lanes(const double*, int n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
FASTRNN_HD Native<float> native_load(const float* p, int n) {
  return _mm256_maskload_ps(p, first_lanes(p, n));
}
FASTRNN_HD Native<double> native_load(const double* p, int n) {
  return _mm256_maskload_pd(p, first_lanes(p, n));
}
FASTRNN_HD void native_store(float* p, Native<float> v, int n) {
  _mm256_maskstore_ps(p, first_lanes(p, n), v);
}
FASTRNN_HD void native_store(double* p, Native<double> v, int n) {
  _mm256_maskstore_pd(p, first_lanes(p, n), v);
}

FASTRNN_HD Bits<float> native_words_of_halves(HalfBits h) {
  return (Bits<float>)_mm256_cvtepu16_epi32((__m128i)h);
}
FASTRNN_HD HalfBits native_halves_of_words(Bits<float> words) {
  return (HalfBits)_mm_packus_epi32(_mm256_castsi256_si128((__m256i)words),
                                    _mm256_extracti128_si256((__m256i)words, 1));
}
// By general registers: a vector read from where its parts have just been written waits for them.
FASTRNN_HD HalfBits native_load_halves(const uint16_t* from, int n) {
  uint64_t parts[2] = {};
  for (int i = 0; i < 2 && n > 0; ++i, from += 4, n -= 4) {
    uint32_t pair = 0;
    if (n >= 4) {
      __builtin_memcpy(&parts[i], from, sizeof parts[i]);
      continue;
    }
    if (n & 2) __builtin_memcpy(&pair, from, sizeof pair);
    parts[i] = pair | (n & 1 ? uint64_t(from[n - 1]) << 16 * (n - 1) : 0);
  }
  return (HalfBits)_mm_set_epi64x(int64_t(parts[1]), int64_t(parts[0]));
}
FASTRNN_HD Native<float> native_from_float16(HalfBits h) { return _mm256_cvtph_ps((__m128i)h); }
FASTRNN_HD HalfBits native_to_float16(Native<float> x) {
  return (HalfBits)_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT);
}

typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));
FASTRNN_HD Native<int32_t> native_dot_pairs(Shorts a, Shorts b) {
  return (Native<int32_t>)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}

}  // namespace fastrnn::FASTRNN_ISA
