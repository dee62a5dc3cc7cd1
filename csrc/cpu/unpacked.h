// Few rows times a matrix that is used once: the weights are read as they lie, a square of them is
// transposed in registers, and its words go to the sums. Same chains, hence same bits, as
// product().
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
template <class T, class Done>
void unpacked_product(const Panels<PlainFactors<T>>& to, int64_t begin, int64_t end, const T* w,
                      const T* bias, const T* a, int64_t lda, int rows, Sums<PlainFactors<T>> sums,
                      const Done& done) {
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

}  // namespace fastrnn::FASTRNN_ISA
