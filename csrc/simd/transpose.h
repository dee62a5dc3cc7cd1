// Transposes a square block of Vec<T>::kWidth rows in registers.
#pragma once

#include <utility>

#include "vec.h"

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FASTRNN_HAS_SHUFFLE 1
#endif
#endif

namespace fastrnn::FASTRNN_ISA {

template <class T, class Half, int... L>
FASTRNN_HD Native<T> joined(Half low, Half high, std::integer_sequence<int, L...>) {
#ifdef FASTRNN_HAS_SHUFFLE
  return __builtin_shufflevector(low, high, L...);
#else
  constexpr int D = sizeof...(L) / 2;
  return Native<T>{(L < D ? low[L & (D - 1)] : high[L & (D - 1)])...};
#endif
}

// Half a register from each address.
template <class T>
FASTRNN_HD Native<T> load_halves(const T* low, const T* high) {
  constexpr int D = Vec<T>::kWidth / 2;
  typedef T Half __attribute__((vector_size(D * sizeof(T))));
  Half a, b;
  __builtin_memcpy(&a, low, sizeof a);
  __builtin_memcpy(&b, high, sizeof b);
  return joined<T>(a, b, std::make_integer_sequence<int, 2 * D>());
}

// Exchanges the off-diagonal halves of every 2D x 2D block of rows a = r[i], b = r[i + D].
template <class T, int D, int... L>
FASTRNN_HD void exchange(Native<T>& a, Native<T>& b, std::integer_sequence<int, L...>) {
  constexpr int W = Vec<T>::kWidth;
#ifdef FASTRNN_HAS_SHUFFLE
  const Native<T> low = __builtin_shufflevector(a, b, (L & D ? W + L - D : L)...);
  b = __builtin_shufflevector(a, b, (L & D ? W + L : L + D)...);
#else
  const Native<T> low = {(L & D ? b[(L - D) & (W - 1)] : a[L])...};
  b = Native<T>{(L & D ? b[L] : a[(L + D) & (W - 1)])...};
#endif
  a = low;
}

// Exchanges r[i][j] and r[j][i], in blocks of 2D x 2D.
template <class T, int D = Vec<T>::kWidth / 2>
FASTRNN_HD void transpose(Native<T>* r) {
  constexpr int W = Vec<T>::kWidth;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    if (!(i & D)) exchange<T, D>(r[i], r[i + D], std::make_integer_sequence<int, W>());
  if constexpr (D > 1) transpose<T, D / 2>(r);
}

// r[j][i] = from[i * ld + j]. Halves of rows are loaded side by side, which spares the first
// exchange: for few rows times what they are transposed for, some 5% of the time.
template <class T>
FASTRNN_HD void transpose_rows(const T* from, int64_t ld, Native<T>* r) {
  constexpr int D = Vec<T>::kWidth / 2;
#pragma GCC unroll 8
  for (int i = 0; i < D; ++i, from += ld) {
    r[i] = load_halves(from, from + D * ld);
    r[i + D] = load_halves(from + D, from + D * ld + D);
  }
  if constexpr (D > 1) transpose<T, D / 2>(r);
}

// to[j * to_row + i] = element j of row(i), for i, j < W.
template <class T, class Row>
void transpose_block(const Row& row, T* to, int64_t to_row) {
  constexpr int W = Vec<T>::kWidth;
  Native<T> r[W];
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i) r[i] = row(i);
  transpose<T>(r);
#pragma GCC unroll 16
  for (int j = 0; j < W; ++j) __builtin_memcpy(to + j * to_row, &r[j], sizeof r[j]);
}

}  // namespace fastrnn::FASTRNN_ISA
