// The rows that feed a product, and how sums of 8-bit factors become values again.
#pragma once

#include "arena.h"
#include "pack.h"
#include "rows.h"

namespace fastrnn::FASTRNN_ISA {

// Rows of n numbers, as the cell's maths and as the product reads them. Of 8-bit factors both are
// kept: a row's scale is known only when its values are.
template <class N>
class Operand {
 public:
  using V = Vec<typename N::Value>;
  using Left = typename N::Left;

  void lay_out(int64_t rows, int64_t n, Arena& arena) {
    n_ = n, ld_ = padded<Left>(n);
    factors_ = arena.take<Left>(rows * ld_);
    if constexpr (N::kQuantized) {
      ld_values_ = padded<typename N::Value>(n);
      values_ = arena.take<typename N::Value>(rows * ld_values_);
      scales_ = arena.take<float>(rows);
    }
  }

  const Left* factors(int64_t row) const { return factors_ + row * ld_; }
  int64_t ld() const { return ld_; }
  const float* scales() const { return N::kQuantized ? scales_ : nullptr; }

  V load(int64_t row, int64_t u) const {
    if constexpr (N::kQuantized)
      return V::load(values_ + row * ld_values_ + u);
    else
      return load_value(factors_ + row * ld_ + u, N::kWidth);
  }
  // A whole vector, of which the lanes past n may be anything.
  void store(int64_t row, int64_t u, V v) {
    if constexpr (N::kQuantized)
      v.store(values_ + row * ld_values_ + u);
    else if constexpr (N::kDirect)
      store_value(factors_ + row * ld_ + u, v, N::kWidth);
    else
      rounded_to<typename N::Storage>(v).store(factors_ + row * ld_ + u);
  }
  void set(int64_t row, const typename N::Storage* from) {
    int64_t u = 0;
    if (from)
      for (; u + N::kWidth <= n_; u += N::kWidth) store(row, u, load_value(from + u, N::kWidth));
    for (; u < n_; u += N::kWidth) store(row, u, from ? load_value(from + u, int(n_ - u)) : V(0));
  }
  void get(int64_t row, typename N::Storage* to) const {
    for (int64_t u = 0; u < n_; u += N::kWidth)
      store_value(to + u, load(row, u), int(smaller(N::kWidth, n_ - u)));
  }

  // Before a product with rows [begin, end), when all of them have been stored. A last, incomplete
  // word reads past n, where maths may have left NaN (of zero weights times infinity).
  void prepare(int64_t begin, int64_t end) {
    if constexpr (N::kQuantized) {
      for (int64_t r = begin; r < end; ++r)
        scales_[r] = quantize(values_ + r * ld_values_, n_, factors_ + r * ld_);
    } else if constexpr (N::Factors::kGroup > 1) {
      if (n_ % N::kWidth == 0) return;
      for (int64_t r = begin; r < end; ++r) fill_row(factors_ + r * ld_ + n_, Left{}, ld_ - n_);
    }
  }

 private:
  // Symmetric, to [-127, 127] + 128; returns the scale: NaN if the row has no largest number.
  static float quantize(const float* from, int64_t n, Left* to) {
    constexpr int W = Vec<float>::kWidth;
    typedef Left Factors __attribute__((vector_size(W * sizeof(Left))));
    Vec<float> largest(0), poison(0);
    for (int64_t u = 0; u < n; u += W) {
      const Vec<float> v = Vec<float>::load(from + u, int(smaller(W, n - u)));
      largest = native_max(largest.v, native_abs(v.v));
      poison = fma(v, Vec<float>(0), poison);
    }
    float lanes[W], most = 0, spoilt = 0;
    largest.store(lanes);
    for (int i = 0; i < W; ++i) most = lanes[i] > most ? lanes[i] : most;
    poison.store(lanes);
    for (int i = 0; i < W; ++i) spoilt += lanes[i];
    const Vec<float> factor(most > 1e-30f && spoilt == 0 ? 127.0f / most : 0.0f);
    // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
    const Vec<float> round(12582912.0f + 128.0f);
    for (int64_t u = 0; u < n; u += W) {
      const Vec<float> q = fma(Vec<float>::load(from + u, int(smaller(W, n - u))), factor, round);
      const Factors factors = __builtin_convertvector((Bits<float>)q.v & 0xff, Factors);
      __builtin_memcpy(to + u, &factors, sizeof factors);
    }
    return (most > 1e-30f ? most / 127.0f : 0.0f) + spoilt;
  }

  int64_t n_, ld_, ld_values_;
  Left* factors_;
  typename N::Value* values_;
  float* scales_;
};

// A packed matrix with, of 8-bit numbers, the scale and bias of every column in the panels' order.
template <class N, class F = typename N::Factors>
struct PackedMatrix {
  using T = typename N::Value;
  Panels<F> panels;
  T *scale = nullptr, *bias = nullptr;

  void lay_out(int64_t k, int64_t units, int gates, bool present, Arena& arena) {
    panels = {nullptr, k, units, gates};
    panels.data = arena.take<typename N::Sum>(present ? panels.size() : 0);
    if (!N::kQuantized) return;
    scale = arena.take<T>(present ? columns() : 0);
    bias = arena.take<T>(present ? columns() : 0);
  }
  int64_t columns() const { return panels.count() * panels.columns() * N::kWidth; }

  void pack_panel(int64_t p, const void* w, const void* b, const float* s) const {
    const auto* biases = static_cast<const typename N::Storage*>(b);
    pack_rows_panel<N>(panels, p, static_cast<const typename N::Weight*>(w), biases);
    if constexpr (N::kQuantized)
      for (int i = 0; i < panels.columns(p) * N::kWidth; ++i) {
        const int c = i / N::kWidth;
        const int64_t u = panels.unit(p, c) + i % N::kWidth, at = p * stride() + i;
        const bool valid = u < panels.units;
        const int64_t row = c % panels.gates * panels.units + u;
        scale[at] = valid ? s[row] : 0;
        bias[at] = valid && b ? biases[row] : 0;
      }
  }

  // The values of a tile of sums, rows first_row.. of the operand, in the sums' own memory.
  const T* values(int64_t p, int rows, typename N::Sum* tile, const float* row_scales) const {
    if constexpr (N::kQuantized) {
      using V = Vec<T>;
      T* to = reinterpret_cast<T*>(tile);
      const int n = panels.columns(p) * N::kWidth;
      const T *s = scale + p * stride(), *b = bias + p * stride();
      for (int r = 0; r < rows; ++r, to += n, tile += n)
        for (int i = 0; i < n; i += N::kWidth) {
          const V sum(__builtin_convertvector(Vec<int32_t>::load(tile + i).v, Native<T>));
          fma(sum * V(row_scales[r]), V::load(s + i), V::load(b + i)).store(to + i);
        }
      return reinterpret_cast<T*>(tile) - rows * n;
    } else {
      return tile;
    }
  }

 private:
  int64_t stride() const { return panels.columns() * N::kWidth; }
};

}  // namespace fastrnn::FASTRNN_ISA
