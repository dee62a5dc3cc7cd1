// Weights into panels (see product.h), for the products of the forward and of the backward pass.
#pragma once

#include "../simd/transpose.h"
#include "product.h"
#include "rows.h"

namespace fastrnn::FASTRNN_ISA {

// One vector of columns of a panel: `lanes` rows of w, `ld` long, become lanes; the rest is zero.
template <class T>
void pack_lanes(const T* w, int64_t ld, int lanes, T* to, int64_t to_row) {
  constexpr int W = Vec<T>::kWidth;
  int64_t k = 0;
  if (lanes == W)
    for (; k + W <= ld; k += W) {
      // Many rows are read side by side, more streams than processors recognise by themselves.
      for (int lane = 0; lane < W; ++lane) __builtin_prefetch(w + lane * ld + k + 8 * W);
      transpose_block(w + k, ld, to + k * to_row, to_row);
    }
  for (; k < ld; ++k)
    for (int lane = 0; lane < W; ++lane)
      to[k * to_row + lane] = lane < lanes ? w[lane * ld + k] : T(0);
}

// One panel of the product with w transposed: column (g, u) is row g * units + u of w, [G*units,k].
template <class T>
void pack_rows_panel(const Panels<T>& to, int64_t p, const T* w, const T* bias) {
  constexpr int W = Vec<T>::kWidth;
  const int columns = to.columns(p);
  for (int c = 0; c < columns; ++c) {
    const int64_t unit = (p * to.blocks_per_panel() + c / to.gates) * W;
    const int64_t first = c % to.gates * to.units + unit;
    const int lanes = int(smaller(W, to.units - unit));
    T* column = to.panel(p) + c * W;
    for (int lane = 0; lane < W; ++lane)
      column[lane] = bias && lane < lanes ? bias[first + lane] : T(0);
    pack_lanes(w + first * to.k, to.k, lanes, column + columns * W, columns * W);
  }
}

// One panel of the product with w itself, [G*units,n] with one "gate" of n columns. Its k runs
// over slots: slot s holds the rows of gate order[s] of w.
template <class T>
void pack_columns_panel(const Panels<T>& to, int64_t p, const T* w, const int* order, int slots) {
  constexpr int W = Vec<T>::kWidth;
  const int columns = to.columns(p);
  const int64_t units = to.k / slots, first = p * to.blocks_per_panel() * W;
  T* out = to.panel(p);
  fill_row(out, T(0), columns * W);
  out += columns * W;
  for (int s = 0; s < slots; ++s) {
    for (int64_t u = 0; u < units; ++u, out += columns * W) {
      const T* row = w + (order[s] * units + u) * to.units + first;
      const int64_t n = smaller(columns * W, to.units - first);
      copy_row(out, row, n);
      fill_row(out + n, T(0), columns * W - n);
    }
  }
}

// The gates of a gradient's slots. A product's slots must be adjacent, from `first` on.
template <int N>
struct SlotOrder {
  int first = 0, gate[N] = {};

  constexpr explicit SlotOrder(const int (&slot_of_gate)[N]) {
    first = slot_of_gate[0];
    for (int g = 1; g < N; ++g)
      if (slot_of_gate[g] < first) first = slot_of_gate[g];
    for (int g = 0; g < N; ++g) gate[slot_of_gate[g] - first] = g;
  }
};

}  // namespace fastrnn::FASTRNN_ISA
