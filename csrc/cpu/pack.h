// Weights into panels (see product.h), for the products of the forward and of the backward pass.
#pragma once

#include "product.h"
#include "rows.h"

namespace fastrnn::FASTRNN_ISA {

// One panel of the product with w transposed: column (g, u) is row g * units + u of w, [G*units,k].
template <class T>
void pack_rows_panel(const Panels<T>& to, int64_t p, const T* w, const T* bias) {
  constexpr int W = Vec<T>::kWidth;
  const int columns = to.columns(p);
  T* panel = to.panel(p);
  for (int c = 0; c < columns; ++c) {
    const int64_t unit = (p * to.blocks_per_panel() + c / to.gates) * W;
    const int64_t first = c % to.gates * to.units + unit;
    const int n = int(smaller(W, to.units - unit));
    T* column = panel + c * W;
    for (int lane = 0; lane < W; ++lane) column[lane] = bias && lane < n ? bias[first + lane] : T(0);
    column += columns * W;
    // Blocks of k: a block's destination lines stay in L1 while all lanes are written.
    for (int64_t k0 = 0; k0 < to.k; k0 += 16) {
      const int64_t k1 = smaller(k0 + 16, to.k);
      for (int lane = 0; lane < W; ++lane) {
        const T* row = w + (first + lane) * to.k;
        for (int64_t k = k0; k < k1; ++k) column[k * columns * W + lane] = lane < n ? row[k] : T(0);
      }
    }
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
