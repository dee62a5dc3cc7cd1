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

#ifdef FASTRNN_HAS_SHUFFLE
// Exchanges the off-diagonal halves of every 2D x 2D block of rows a = r[i], b = r[i + D].
template <class T, int D, int... L>
FASTRNN_HD void exchange(Native<T>& a, Native<T>& b, std::integer_sequence<int, L...>) {
  constexpr int W = Vec<T>::kWidth;
  const Native<T> low = __builtin_shufflevector(a, b, (L & D ? W + L - D : L)...);
  b = __builtin_shufflevector(a, b, (L & D ? W + L : L + D)...);
  a = low;
}

template <class T, int D = Vec<T>::kWidth / 2>
FASTRNN_HD void transpose(Native<T>* r) {
  constexpr int W = Vec<T>::kWidth;
#pragma GCC unroll 16
  for (int i = 0; i < W; ++i)
    if (!(i & D)) exchange<T, D>(r[i], r[i + D], std::make_integer_sequence<int, W>());
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
#else
template <class T, class Row>
void transpose_block(const Row& row, T* to, int64_t to_row) {
  constexpr int W = Vec<T>::kWidth;
  for (int i = 0; i < W; ++i) {
    const Native<T> r = row(i);
    for (int j = 0; j < W; ++j) to[j * to_row + i] = r[j];
  }
}
#endif

}  // namespace fastrnn::FASTRNN_ISA
