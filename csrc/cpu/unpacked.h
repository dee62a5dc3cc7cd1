// Few rows times a matrix that is used once or a few times: the weights are read as they lie. In
// the forward pass a square of them is transposed in registers, and its words go to the sums. Same
// chains, hence same bits, as product().
#pragma once

#include "pack.h"

namespace fastrnn::FASTRNN_ISA {

// From more rows on a panel is packed, since transposed words would be multiplied from memory.
constexpr int kMaxUnpackedRows = 6;

// Plain numbers only: tiles and words of several factors add up in other orders.
template <class N>
constexpr bool kReadsUnpacked =
    std::is_same_v<typename N::Factors, PlainFactors<typename N::Sum>> &&
    std::is_same_v<typename N::Weight, typename N::Sum>;

// Adds to the vectors out + r * out_row one vector of columns, which are `lanes` rows of w, n long;
// zeros stand for the others. Meanwhile as many rows of `next` are brought to L2, from the first to
// the last: side by side, as they are used, they are more streams than processors recognise.
template <class T, int R>
void multiply_lanes(const T* w, int64_t n, int lanes, const T* next, const T* a, int64_t lda,
                    T* out, int64_t out_row) {
  using V = Vec<T>;
  constexpr int W = V::kWidth, kLineElements = kLine / sizeof(T);
  V sum[R];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) sum[r] = V::load(out + r * out_row);
  int64_t k = 0;
  if (lanes == W)
    for (; k + W <= n; k += W) {
#pragma GCC unroll 16
      for (int i = 0; i < W * W; i += kLineElements) __builtin_prefetch(next + k * W + i, 0, 2);
      Native<T> word[W];
      transpose_rows(w + k, n, word);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
        for (int j = 0; j < W; ++j) sum[r] = fma(V(a[r * lda + k + j]), V(word[j]), sum[r]);
    }
  for (; k < n; ++k) {
    T word[W] = {};
    for (int lane = 0; lane < lanes; ++lane) word[lane] = w[lane * n + k];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) sum[r] = fma(V(a[r * lda + k]), V::load(word), sum[r]);
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) sum[r].store(out + r * out_row);
}

template <class T>
using MultiplyLanes = void (*)(const T* w, int64_t n, int lanes, const T* next, const T* a,
                               int64_t lda, T* out, int64_t out_row);
template <class T>
inline constexpr MultiplyLanes<T> kMultiplyLanes[kMaxUnpackedRows] = {
    multiply_lanes<T, 1>, multiply_lanes<T, 2>, multiply_lanes<T, 3>,
    multiply_lanes<T, 4>, multiply_lanes<T, 5>, multiply_lanes<T, 6>};

// product() of up to kMaxUnpackedRows rows with the panels [begin, end) that `to` would have.
template <class T>
[[gnu::noinline]] void unpacked_product(const Panels<PlainFactors<T>>& to, int64_t begin,
                                        int64_t end, const T* w, const T* bias, const T* a,
                                        int64_t lda, int rows, Sums<PlainFactors<T>> sums,
                                        const Receiver<T>& done) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  if (rows <= 0) return;
  const MultiplyLanes<T> multiply = kMultiplyLanes<T>[rows - 1];
  for (int64_t p = begin; p < end; ++p) {
    const int columns = to.columns(p);
    T* out = sums.data + (sums.keep ? p * rows * to.columns() * W : 0);
    for (int c = 0; c < columns; ++c) {
      const int64_t row = to.row(p, c);
      const int64_t next = c + 1 < columns ? to.row(p, c + 1) : to.row(p + 1, 0);
      const int lanes = int(smaller(W, to.units - to.unit(p, c)));
      const V start = bias ? V::load(bias + row, lanes) : V(0);
      for (int r = 0; r < rows; ++r) start.store(out + (r * columns + c) * W);
      multiply(w + row * to.k, to.k, lanes, w + next * to.k, a, lda, out + c * W, columns * W);
    }
    done(p, int64_t(0), rows, out);
  }
}

// The same in the backward pass, with w itself, whose rows are words of panels as they lie. So many
// rows of a in a tile, with four columns:
constexpr int kRowsAtOnce = kRegisters == 32 ? 6 : 2;

// R rows of a times C vectors of columns of w, the last with `valid` of them.
template <class T, int R, int C>
void multiply_columns_of(SlotRows<T> w, int64_t k, int64_t ahead, int valid, const T* a,
                         int64_t lda, T* out) {
  using V = Vec<T>;
  constexpr int W = V::kWidth;
  V sum[R][C];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sum[r][c] = V(0);
  for (;; w.advance()) {
    V word[C];
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      __builtin_prefetch(w.row() + ahead + c * W, 0, 2);
      word[c] = c + 1 < C ? V::load(w.row() + c * W) : V::load(w.row() + c * W, valid);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[r][c] = fma(V(a[r * lda]), word[c], sum[r][c]);
    ++a;
    if (--k == 0) break;
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sum[r][c].store(out + (r * C + c) * W);
}

template <class T>
using MultiplyColumnsOf = void (*)(SlotRows<T> w, int64_t k, int64_t ahead, int valid, const T* a,
                                   int64_t lda, T* out);
template <class T>
struct ColumnsTable {
  MultiplyColumnsOf<T> entry[kMaxColumns][kRowsAtOnce] = {};
  constexpr ColumnsTable() { fill<1, 1>(); }
  template <int C, int R>
  constexpr void fill() {
    entry[C - 1][R - 1] = multiply_columns_of<T, R, C>;
    if constexpr (R < kRowsAtOnce)
      fill<C, R + 1>();
    else if constexpr (C < kMaxColumns)
      fill<C + 1, 1>();
  }
};
template <class T>
inline constexpr ColumnsTable<T> kColumnsTable{};

// product() of the panels [begin, end) that pack_columns_panel() would make of w.
template <class T>
[[gnu::noinline]] void unpacked_columns_product(const Panels<PlainFactors<T>>& to, int64_t begin,
                                                int64_t end, const T* w, const int* order,
                                                int slots, const T* a, int64_t lda, int64_t rows,
                                                T* out, const Receiver<T>& done) {
  constexpr int W = Vec<T>::kWidth;
  const int64_t tiles = (rows + kRowsAtOnce - 1) / kRowsAtOnce;
  for (int64_t p = begin; p < end; ++p) {
    const int columns = to.columns(p);
    const int64_t first = to.unit(p, 0), last = first + (columns - 1) * W;
    const SlotRows<T> words(w + first, to.k / slots, to.units, order);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t r = rows * t / tiles, n = rows * (t + 1) / tiles - r;
      kColumnsTable<T>.entry[columns - 1][n - 1](words, to.k, kRowsAhead * to.units,
                                                 int(smaller(W, to.units - last)), a + r * lda, lda,
                                                 out);
      done(p, r, int(n), out);
    }
  }
}

}  // namespace fastrnn::FASTRNN_ISA
