// What matrix products multiply.
#pragma once

#include "storage.h"

namespace fastrnn::FASTRNN_ISA {

// The factors of a matrix product. A word, as wide as a sum, holds kGroup successive k of a row or
// column; a product adds words times words to sums.
template <class T>
struct PlainFactors {
  using Left = T;   // of the rows
  using Right = T;  // of the packed matrix
  using Sum = T;
  static constexpr int kGroup = 1;
  using Word = Vec<T>;
  FASTRNN_HD static Word broadcast(const Left* a) { return Vec<T>(*a); }
  FASTRNN_HD static Word load(const Sum* w) { return Vec<T>::load(w); }
  FASTRNN_HD static Vec<T> multiply_add(Word a, Word w, Vec<T> sum) { return fma(a, w, sum); }
  // One of the kGroup parts of words, and whole words from rows of Left.
  FASTRNN_HD static void store_part(Sum* to, int64_t, Vec<T> v) { v.store(to); }
  FASTRNN_HD static Vec<T> gather_words(const Left* row, int64_t, int) { return Vec<T>::load(row); }
};

#ifdef FASTRNN_HAS_DOT
struct Bfloat16Factors {
  using Left = Bfloat16;
  using Right = Bfloat16;
  using Sum = float;
  static constexpr int kGroup = 2;
  using Word = Native<int32_t>;
  FASTRNN_HD static Word broadcast(const Left* a) {
    int32_t word;
    __builtin_memcpy(&word, a, sizeof word);
    return Word{} + word;
  }
  FASTRNN_HD static Word load(const Sum* w) {
    Word word;
    __builtin_memcpy(&word, w, sizeof word);
    return word;
  }
  FASTRNN_HD static Vec<float> multiply_add(Word a, Word w, Vec<float> sum) {
    return (Native<float>)_mm512_dpbf16_ps((__m512)sum.v, (__m512bh)w, (__m512bh)a);
  }
  // Threads may write the two parts of a word at the same time, so neither touches the other.
  FASTRNN_HD static void store_part(Sum* to, int64_t part, Vec<float> v) {
    const Bits<float> words = __builtin_convertvector(narrow(Bfloat16(), v.v), Bits<float>);
    _mm512_mask_storeu_epi16(to, 0x55555555u << part, (__m512i)(words << uint32_t(16 * part)));
  }
  FASTRNN_HD static Vec<float> gather_words(const Left* row, int64_t ld, int rows) {
    const HalfBits low = load_half(row, Vec<float>::kWidth);
    return interleave(low, rows > 1 ? load_half(row + ld, Vec<float>::kWidth) : HalfBits{});
  }
};
#else
// Widened while they are packed or gathered.
using Bfloat16Factors = PlainFactors<float>;
#endif

// 8-bit numbers, those of the rows with 128 added. Sums are exact.
struct Int8Factors {
  using Sum = int32_t;
#ifdef FASTRNN_HAS_DOT
  using Left = uint8_t;
  using Right = int8_t;
  FASTRNN_HD static Vec<int32_t> multiply_add(Native<int32_t> a, Native<int32_t> w,
                                              Vec<int32_t> sum) {
    return {(Native<int32_t>)_mm512_dpbusd_epi32((__m512i)sum.v, (__m512i)a, (__m512i)w)};
  }
#else
  // Widened while they are packed and quantized: products of pairs are what there is.
  using Left = int16_t;
  using Right = int16_t;
  FASTRNN_HD static Vec<int32_t> multiply_add(Native<int32_t> a, Native<int32_t> w,
                                              Vec<int32_t> sum) {
    typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));
    return {sum.v + native_dot_pairs((Shorts)a, (Shorts)w)};
  }
#endif
  static constexpr int kGroup = sizeof(Sum) / sizeof(Left);
  using Word = Native<int32_t>;
  FASTRNN_HD static Word broadcast(const Left* a) {
    int32_t word;
    __builtin_memcpy(&word, a, sizeof word);
    return Native<int32_t>{} + word;
  }
  FASTRNN_HD static Word load(const Sum* w) { return Vec<int32_t>::load(w).v; }
};

}  // namespace fastrnn::FASTRNN_ISA
