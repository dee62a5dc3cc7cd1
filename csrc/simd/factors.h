// What matrix products multiply.
#pragma once

#include "storage.h"

namespace fastrnn::FASTRNN_ISA {

// The factors of a matrix product. A word of the packed matrix, as wide as a sum, holds kGroup
// successive k of a column. A product takes kSteps multiply-adds for it: each reads its part of the
// word and what that is multiplied with from the row.
template <class T>
struct PlainFactors {
  using Left = T;   // of the rows
  using Right = T;  // of the packed matrix
  using Sum = T;
  static constexpr int kGroup = 1, kSteps = 1;
  using Word = Vec<T>;
  FASTRNN_HD static Word broadcast(const Left* a, int) { return Vec<T>(*a); }
  FASTRNN_HD static Word load(const Sum* w, int) { return Vec<T>::load(w); }
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
  static constexpr int kGroup = 2, kSteps = 1;
  using Word = Native<int32_t>;
  FASTRNN_HD static Word broadcast(const Left* a, int) {
    int32_t word;
    __builtin_memcpy(&word, a, sizeof word);
    return Word{} + word;
  }
  FASTRNN_HD static Word load(const Sum* w, int) {
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
#define FASTRNN_HAS_NARROW
// Widened while they are packed or gathered.
using Bfloat16Factors = PlainFactors<float>;

// Weights are widened as they are multiplied, and take half the memory. Same chains, hence same
// bits, as those that are widened before. For few rows: tiles of many have no registers for it.
struct NarrowBfloat16Factors {
  using Left = float;
  using Right = Bfloat16;
  using Sum = float;
  static constexpr int kGroup = 2, kSteps = 2;
  using Word = Vec<float>;
  FASTRNN_HD static Word broadcast(const Left* a, int step) { return Vec<float>(a[step]); }
  FASTRNN_HD static Word load(const Sum* w, int step) {
    Bits<float> words;
    __builtin_memcpy(&words, w, sizeof words);
    return (Native<float>)(step ? words & 0xffff0000u : words << 16);
  }
  FASTRNN_HD static Vec<float> multiply_add(Word a, Word w, Vec<float> sum) {
    return fma(a, w, sum);
  }
};
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
  static constexpr int kGroup = sizeof(Sum) / sizeof(Left), kSteps = 1;
  using Word = Native<int32_t>;
  FASTRNN_HD static Word broadcast(const Left* a, int) {
    int32_t word;
    __builtin_memcpy(&word, a, sizeof word);
    return Native<int32_t>{} + word;
  }
  FASTRNN_HD static Word load(const Sum* w, int) { return Vec<int32_t>::load(w).v; }
};

}  // namespace fastrnn::FASTRNN_ISA
