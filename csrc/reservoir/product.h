// Products of a fixed matrix with some rows of states. Every sum runs in four chains, entry k of a
// row in chain k mod 4, whatever the layout, the ISA's width and the number of rows.
#pragma once

#include <fastrnn/reservoir.h>

#include "../cpu/arena.h"
#include "../simd/transpose.h"

namespace fastrnn::FASTRNN_ISA {

using reservoir::kBlock;
using reservoir::kWindow;
using reservoir::Layout;

constexpr int kChains = 4;
// Rows whose sums are in registers together: chains and one vector of weights for each chain.
constexpr int kTileRows = kRegisters >= 32 ? 4 : 2;

FASTRNN_HD int64_t windows_of(int64_t n) { return (n + kWindow - 1) / kWindow; }
FASTRNN_HD int64_t blocks_of(int64_t n) { return (n + kBlock - 1) / kBlock; }
// Elements of a row of states: the first 16 follow the last again, so that strips need not wrap.
FASTRNN_HD int64_t extended(int64_t n) { return blocks_of(n) * kBlock + kBlock; }

template <class T>
FASTRNN_HD void wrap(T* x, int64_t n) {
  for (int64_t i = 0; i < kBlock; ++i) x[n + i] = x[i];
}

// Of one member.
template <class T>
struct MatrixView {
  Layout layout = Layout::kNone;
  const T* weights = nullptr;
  const void* columns = nullptr;
  const int64_t* rows = nullptr;
  int64_t K = 0, N = 0;
  bool wide = false;

  MatrixView() = default;
  MatrixView(const reservoir::Matrix& m, int64_t n, int64_t member)
      : layout(m.layout),
        weights(static_cast<const T*>(m.weights)),
        columns(m.columns),
        K(m.K),
        N(n),
        wide(m.wide) {
    const int64_t blocks = member * blocks_of(n);
    if (layout == Layout::kStrips) {
      weights += blocks * K * kBlock;
      columns = static_cast<const char*>(columns) + blocks * K * (wide ? 4 : 2);
    }
    if (layout == Layout::kPanels) weights += blocks * N * kBlock;
    if (layout == Layout::kRows) rows = m.rows + member * (n + 1);
    if (layout == Layout::kWindows) rows = m.rows + member * (blocks_of(n) * windows_of(n) + 1);
  }
};

template <class T, int R>
struct Sums {
  Vec<T> chain[R][kChains];

  FASTRNN_HD explicit Sums(Vec<T> first) {
    for (int r = 0; r < R; ++r)
      for (int c = 0; c < kChains; ++c) chain[r][c] = c ? Vec<T>(0) : first;
  }
  FASTRNN_HD Vec<T> total(int r) const {
    return (chain[r][0] + chain[r][1]) + (chain[r][2] + chain[r][3]);
  }
  // Adds the products of `count` vectors of weights, 16 elements apart, with operand(r, k).
  template <class Operand>
  FASTRNN_HD void add(const T* weights, int64_t count, const Operand& operand) {
    int64_t k = 0;
    for (; k + kChains <= count; k += kChains)
#pragma GCC unroll 4
      for (int c = 0; c < kChains; ++c) add_one(weights, k + c, c, operand);
#pragma GCC unroll 3
    for (int c = 0; c < kChains - 1; ++c)
      if (k + c < count) add_one(weights, k + c, c, operand);
  }
  template <class Operand>
  FASTRNN_HD void add_one(const T* weights, int64_t k, int c, const Operand& operand) {
    const Vec<T> w = Vec<T>::load(weights + k * kBlock);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) chain[r][c] = fma(w, operand(r, k), chain[r][c]);
  }
};

// The matrices that a tile multiplies in registers, each for the vector of rows that starts `lane`
// rows into block b. states(r) is a row of states.
struct NoMatrix {
  template <class T, int R, class States>
  FASTRNN_HD void add(Sums<T, R>&, int64_t, int, const States&) const {}
};

template <class T, class Index>
struct Strips {
  const T* weights;
  const Index* columns;
  int64_t K;

  explicit Strips(const MatrixView<T>& m)
      : weights(m.weights), columns(static_cast<const Index*>(m.columns)), K(m.K) {}

  template <int R, class States>
  FASTRNN_HD void add(Sums<T, R>& sums, int64_t block, int lane, const States& states) const {
    const Index* c = columns + block * K;
    sums.add(weights + block * K * kBlock + lane, K,
             [&](int r, int64_t k) { return Vec<T>::load(states(r) + c[k] + lane); });
  }
};

template <class T>
struct Panels {
  const T* weights;
  int64_t N;

  explicit Panels(const MatrixView<T>& m) : weights(m.weights), N(m.N) {}

  template <int R, class States>
  FASTRNN_HD void add(Sums<T, R>& sums, int64_t block, int lane, const States& states) const {
    sums.add(weights + block * N * kBlock + lane, N,
             [&](int r, int64_t k) { return Vec<T>(states(r)[k]); });
  }
};

template <class T>
struct Windows {
  const T* weights;
  const uint8_t* places;
  const int64_t* first;  // vectors of a window
  int64_t count;         // windows

  explicit Windows(const MatrixView<T>& m)
      : weights(m.weights),
        places(static_cast<const uint8_t*>(m.columns)),
        first(m.rows),
        count(windows_of(m.N)) {}

  template <int R, class States>
  FASTRNN_HD void add(Sums<T, R>& sums, int64_t block, int lane, const States& states) const {
    const int64_t* from = first + block * count;
    for (int64_t w = 0; w < count; ++w) {
      const uint8_t* place = places + from[w] * kBlock + lane;
      sums.add(weights + from[w] * kBlock + lane, from[w + 1] - from[w], [&](int r, int64_t k) {
        return Vec<T>(native_lookup(states(r) + w * kWindow, place + k * kBlock));
      });
    }
  }
};

// Calls body with the matrix in the form that tiles take; of compressed rows, with NoMatrix.
template <class T, class Body>
FASTRNN_HD void with_tiles(const MatrixView<T>& m, const Body& body) {
  if (m.layout == Layout::kStrips && m.wide)
    body(Strips<T, int32_t>(m));
  else if (m.layout == Layout::kStrips)
    body(Strips<T, uint16_t>(m));
  else if (m.layout == Layout::kPanels)
    body(Panels<T>(m));
  else if (m.layout == Layout::kWindows)
    body(Windows<T>(m));
  else
    body(NoMatrix());
}

FASTRNN_HD float multiply_add(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}
FASTRNN_HD double multiply_add(double a, double b, double c) {
#if defined(__FMA__) || defined(__aarch64__)
  return __builtin_fma(a, b, c);
#else
  return a * b + c;
#endif
}

// out[i] = the product of compressed row i with one row of states.
template <class T, class Index>
void multiply_rows(const MatrixView<T>& m, const T* x, T* out) {
  const Index* columns = static_cast<const Index*>(m.columns);
  for (int64_t i = 0; i < m.N; ++i) {
    const int64_t begin = m.rows[i], count = m.rows[i + 1] - begin;
    const T* w = m.weights + begin;
    const Index* c = columns + begin;
    T s[kChains] = {};
    int64_t k = 0;
    for (; k + kChains <= count; k += kChains)
#pragma GCC unroll 4
      for (int j = 0; j < kChains; ++j) s[j] = multiply_add(w[k + j], x[c[k + j]], s[j]);
    for (int j = 0; k + j < count; ++j) s[j] = multiply_add(w[k + j], x[c[k + j]], s[j]);
    out[i] = (s[0] + s[1]) + (s[2] + s[3]);
  }
  for (int64_t i = m.N; i < blocks_of(m.N) * kBlock; ++i) out[i] = 0;
}

// to[i * W + j] = element i of row j, zero where there is no row; or back, from[i * W + j] to rows.
template <class T, class Rows>
void interleave(const Rows& rows, int count, int64_t n, T* to) {
  constexpr int W = Vec<T>::kWidth;
  for (int64_t i = 0; i < n; i += W)
    transpose_block<T>([&](int j) { return j < count ? Vec<T>::load(rows(j) + i).v : Native<T>{}; },
                       to + i * W, W);
}
template <class T, class Rows>
void separate(const T* from, int count, int64_t n, const Rows& rows) {
  constexpr int W = Vec<T>::kWidth;
  alignas(64) T block[W * W];
  for (int64_t i = 0; i < n; i += W) {
    transpose_block<T>([&](int j) { return Vec<T>::load(from + (i + j) * W).v; }, block, W);
    for (int j = 0; j < count; ++j) Vec<T>::load(block + j * W).store(rows(j) + i);
  }
}

// The same for up to a vector of rows at once, element j of a vector belonging to row j.
template <class T, class Index>
void multiply_interleaved(const MatrixView<T>& m, const T* x, T* out) {
  constexpr int W = Vec<T>::kWidth;
  using V = Vec<T>;
  const Index* columns = static_cast<const Index*>(m.columns);
  for (int64_t i = 0; i < m.N; ++i) {
    const int64_t begin = m.rows[i], count = m.rows[i + 1] - begin;
    const T* w = m.weights + begin;
    const Index* c = columns + begin;
    V s[kChains] = {V(0), V(0), V(0), V(0)};
    int64_t k = 0;
    for (; k + kChains <= count; k += kChains)
#pragma GCC unroll 4
      for (int j = 0; j < kChains; ++j)
        s[j] = fma(V(w[k + j]), V::load(x + int64_t(c[k + j]) * W), s[j]);
    for (int j = 0; k + j < count; ++j)
      s[j] = fma(V(w[k + j]), V::load(x + int64_t(c[k + j]) * W), s[j]);
    ((s[0] + s[1]) + (s[2] + s[3])).store(out + i * W);
  }
}

// Two interleaved copies of a vector of rows.
template <class T>
FASTRNN_HD int64_t interleaved_elements(int64_t n) {
  return 2 * extended(n) * Vec<T>::kWidth;
}

// out(r) = m times states(r) for `count` rows; both have extended(N) elements.
template <class T, class Index, class States, class Out>
void multiply_compressed(const MatrixView<T>& m, int64_t count, const States& states,
                         const Out& out, T* scratch) {
  constexpr int W = Vec<T>::kWidth;
  constexpr int64_t kWorthwhile = W / 4 > 2 ? W / 4 : 2;
  for (int64_t r = 0; r < count; r += W) {
    const int some = int(count - r < W ? count - r : W);
    if (some < kWorthwhile) {
      for (int j = 0; j < some; ++j) multiply_rows<T, Index>(m, states(r + j), out(r + j));
      continue;
    }
    const int64_t padded = blocks_of(m.N) * kBlock;
    T* sums = scratch + extended(m.N) * W;
    interleave<T>([&](int j) { return states(r + j); }, some, padded, scratch);
    multiply_interleaved<T, Index>(m, scratch, sums);
    for (int64_t i = m.N * W; i < padded * W; ++i) sums[i] = 0;
    separate<T>(sums, some, padded, [&](int j) { return out(r + j); });
  }
}

template <class T, int R, class M, class States, class Out>
FASTRNN_HD void multiply_tile(const M& m, int64_t blocks, const States& states, const Out& out) {
  for (int64_t b = 0; b < blocks; ++b)
    for (int lane = 0; lane < kBlock; lane += Vec<T>::kWidth) {
      Sums<T, R> sums(Vec<T>(0));
      m.add(sums, b, lane, states);
      for (int r = 0; r < R; ++r) sums.total(r).store(out(r) + b * kBlock + lane);
    }
}

// out(r) = m times states(r), whatever the layout.
template <class T, class States, class Out>
void multiply(const MatrixView<T>& m, int64_t count, const States& states, const Out& out,
              T* scratch) {
  if (m.layout == Layout::kRows && m.wide)
    return multiply_compressed<T, int32_t>(m, count, states, out, scratch);
  if (m.layout == Layout::kRows)
    return multiply_compressed<T, uint16_t>(m, count, states, out, scratch);
  with_tiles(m, [&](const auto& tiles) {
    int64_t r = 0;
    for (; r + kTileRows <= count; r += kTileRows)
      multiply_tile<T, kTileRows>(
          tiles, blocks_of(m.N), [&](int j) { return states(r + j); },
          [&](int j) { return out(r + j); });
    for (; r < count; ++r)
      multiply_tile<T, 1>(
          tiles, blocks_of(m.N), [&](int) { return states(r); }, [&](int) { return out(r); });
  });
}

}  // namespace fastrnn::FASTRNN_ISA
