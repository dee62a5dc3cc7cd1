// Weights into panels (see product.h), for the products of the forward and of the backward pass.
#pragma once

#include "../simd/transpose.h"
#include "product.h"
#include "rows.h"

namespace fastrnn::FASTRNN_ISA {

// A word of the packed matrix from up to kGroup elements of w, zeros behind them.
template <class N, class F>
typename N::Sum packed_word(const typename N::Weight* w, int64_t count) {
  if constexpr (std::is_same_v<typename N::Weight, typename F::Right> || N::kQuantized) {
    typename F::Right parts[F::kGroup] = {};
    // NOLINTNEXTLINE(bugprone-signed-char-misuse): the numbers have signs
    for (int64_t i = 0; i < smaller(count, F::kGroup); ++i) parts[i] = w[i];
    typename N::Sum word;
    __builtin_memcpy(&word, parts, sizeof word);
    return word;
  } else {
    return load_value(w, 1).v[0];
  }
}

template <class N, class F>
Native<typename N::Sum> packed_words(const typename N::Weight* w) {
  using Right = typename F::Right;
  if constexpr (std::is_same_v<typename N::Weight, Right>) {
    Native<typename N::Sum> words;
    __builtin_memcpy(&words, w, sizeof words);
    return words;
  } else if constexpr (N::kQuantized) {
    constexpr int kCount = N::kWidth * F::kGroup;
    typedef typename N::Weight From __attribute__((vector_size(kCount)));
    typedef Right To __attribute__((vector_size(kVectorBytes)));
    From from;
    __builtin_memcpy(&from, w, sizeof from);
    return (Native<typename N::Sum>)__builtin_convertvector(from, To);
  } else {
    return load_value(w, N::kWidth).v;
  }
}

// One vector of columns of a panel: `lanes` rows of w, n long, become lanes; the rest is zero.
template <class N, class F>
void pack_lanes(const typename N::Weight* w, int64_t n, int lanes, typename N::Sum* to,
                int64_t to_row) {
  constexpr int W = N::kWidth, kGroup = F::kGroup;
  int64_t k = 0;
  if (lanes == W)
    for (; k + W * kGroup <= n; k += W * kGroup) {
      // Many rows are read side by side, more streams than processors recognise by themselves.
      for (int lane = 0; lane < W; ++lane) __builtin_prefetch(w + lane * n + k + 8 * W * kGroup);
      transpose_block([&](int lane) { return packed_words<N, F>(w + lane * n + k); },
                      to + k / kGroup * to_row, to_row);
    }
  for (; k < n; k += kGroup)
    for (int lane = 0; lane < W; ++lane)
      to[k / kGroup * to_row + lane] =
          lane < lanes ? packed_word<N, F>(w + lane * n + k, n - k) : typename N::Sum(0);
}

// What the accumulators of a row of w start from: its bias; of 8-bit numbers what takes back the
// 128 that is added to each factor.
template <class N>
typename N::Sum start_of_sum(const typename N::Weight* w, int64_t n,
                             const typename N::Storage* bias) {
  if constexpr (N::kQuantized) {
    int32_t sum = 0;
    for (int64_t k = 0; k < n; ++k) sum += w[k];
    return -128 * sum;
  } else {
    return bias ? load_value(bias, 1).v[0] : 0;
  }
}

// One panel of the product with w transposed: column (g, u) is row g * units + u of w, [G*units,k].
template <class N, class F>
void pack_rows_panel(const Panels<F>& to, int64_t p, const typename N::Weight* w,
                     const typename N::Storage* bias) {
  constexpr int W = N::kWidth;
  const int columns = to.columns(p);
  for (int c = 0; c < columns; ++c) {
    const int64_t first = to.row(p, c);
    const int lanes = int(smaller(W, to.units - to.unit(p, c)));
    auto* column = to.column(p, c);
    for (int lane = 0; lane < W; ++lane)
      column[lane] = lane < lanes ? start_of_sum<N>(w + (first + lane) * to.k, to.k,
                                                    bias ? bias + first + lane : nullptr)
                                  : typename N::Sum(0);
    pack_lanes<N, F>(w + first * to.k, to.k, lanes, column + to.word_stride(p), to.word_stride(p));
  }
}

// Parts of rows of w are too short for processors to recognise a stream: those so many rows further
// on are asked for.
constexpr int kRowsAhead = 12;

// The rows of w in the order of a panel's k, which runs over slots: slot s holds the rows of gate
// order[s] of w, `units` of them, `ld` apart.
template <class S>
class SlotRows {
 public:
  SlotRows(const S* w, int64_t units, int64_t ld, const int* order)
      : w_(w),
        units_(units),
        ld_(ld),
        order_(order),
        at_(w + order[0] * units * ld),
        left_(units) {}

  const S* row() const { return at_; }
  // The rows must not be used after the last one.
  void advance() {
    at_ += ld_;
    if (--left_ > 0) return;
    left_ = units_;
    at_ = w_ + *++order_ * units_ * ld_;
  }

 private:
  const S* w_;
  int64_t units_, ld_;
  const int* order_;
  const S* at_;
  int64_t left_;
};

// One panel of the product with w itself, [G*units,n] with one "gate" of n columns.
template <class N, class F>
void pack_columns_panel(const Panels<F>& to, int64_t p, const typename N::Storage* w,
                        const int* order, int slots) {
  using S = typename N::Storage;
  constexpr int W = N::kWidth, kGroup = F::kGroup;
  const int columns = to.columns(p);
  const int64_t first = p * to.blocks_per_panel() * W;
  typename N::Sum* out[kMaxColumns];
  for (int c = 0; c < columns; ++c) {
    fill_row(to.column(p, c), typename N::Sum(0), W);
    out[c] = to.column(p, c) + to.word_stride(p);
  }
  const int64_t units = to.k / slots;
  SlotRows<S> rows(w + first, units, to.units, order);
  for (int64_t k = 0; k < to.k; k += kGroup) {
    const S* row[kGroup];
    for (int i = 0; i < kGroup; ++i) {
      row[i] = k + i < to.k ? rows.row() : nullptr;
      if (k + i + 1 < to.k) rows.advance();
      for (int64_t u = 0; u < columns * W; u += kLine / int(sizeof(S)))
        __builtin_prefetch(rows.row() + kRowsAhead * to.units + u, 0, 2);
    }
    for (int c = 0; c < columns; ++c) {
      const int n = int(smaller(W, to.units - first - c * W));
      if constexpr (kGroup == 1) {
        load_value(row[0] + c * W, n).store(out[c]);
      } else {
        const HalfBits low = load_half(row[0] + c * W, n);
        const HalfBits high = row[1] ? load_half(row[1] + c * W, n) : HalfBits{};
        Vec<float>(interleave(low, high)).store(out[c]);
      }
      out[c] += to.word_stride(p);
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
