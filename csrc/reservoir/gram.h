// X^T diag(w) X and X^T diag(w) Y in float64, over blocks of rows that are centred, weighted and
// packed once: panel p holds columns [p W, p W + W) of X, then of Y, row by row.
#pragma once

#include <fastrnn/reservoir.h>

#include <cmath>

#include "../cpu/arena.h"
#include "../cpu/threads.h"
#include "../simd/vec.h"

namespace fastrnn::FASTRNN_ISA {

using reservoir::Gram;
using reservoir::GramBuffers;

constexpr int kGramVectors = 3;  // of a tile's rows
constexpr int kGramPanel = kGramVectors * Vec<double>::kWidth;
// Columns of X that a tile multiplies: so many that the sums fill the registers, and never of two
// panels.
constexpr int kGramRows = kRegisters >= 32 ? (kGramPanel % 8 ? 6 : 8) : (kGramPanel % 4 ? 3 : 4);
static_assert(kGramPanel % kGramRows == 0);
constexpr int64_t kGramChunk = 512;  // rows that are summed before they are added to the result

FASTRNN_HD int64_t gram_panels(int64_t n) { return (n + kGramPanel - 1) / kGramPanel; }

// tile[i][j] = sum over k of a[k][i] b[k][j], both panels of `count` rows.
inline void gram_tile(const double* a, const double* b, int64_t count, double* tile) {
  using V = Vec<double>;
  V sum[kGramRows][kGramVectors];
  for (auto& row : sum)
    for (V& v : row) v = V(0);
  for (int64_t k = 0; k < count; ++k) {
    V right[kGramVectors];
#pragma GCC unroll 3
    for (int j = 0; j < kGramVectors; ++j) right[j] = V::load(b + k * kGramPanel + j * V::kWidth);
#pragma GCC unroll 8
    for (int i = 0; i < kGramRows; ++i) {
      const V left(a[k * kGramPanel + i]);
#pragma GCC unroll 3
      for (int j = 0; j < kGramVectors; ++j) sum[i][j] = fma(left, right[j], sum[i][j]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kGramRows; ++i)
#pragma GCC unroll 3
    for (int j = 0; j < kGramVectors; ++j) sum[i][j].store(tile + i * kGramPanel + j * V::kWidth);
}

// Packs column panel p of `from`: (from - shift) * root, 0 past the last column. With `sums`, adds
// the columns, weighted by root once more.
template <class S>
void gram_pack(const S* from, int64_t row, int64_t n, int64_t columns, int64_t p,
               const double* shift, const double* root, double* to, double* sums) {
  const int64_t first = p * kGramPanel;
  const int64_t some = columns - first < kGramPanel ? columns - first : kGramPanel;
  double offset[kGramPanel] = {}, total[kGramPanel] = {};
  for (int64_t j = 0; shift && j < some; ++j) offset[j] = shift[first + j];
  for (int64_t k = 0; k < n; ++k) {
    const S* x = from + k * row + first;
    double* out = to + k * kGramPanel;
    const double w = root ? root[k] : 1;
    if (some == kGramPanel)
      for (int j = 0; j < kGramPanel; ++j) out[j] = (double(x[j]) - offset[j]) * w;
    else
      for (int j = 0; j < kGramPanel; ++j) out[j] = j < some ? (double(x[j]) - offset[j]) * w : 0;
    for (int j = 0; sums && j < kGramPanel; ++j) total[j] += out[j] * w;
  }
  for (int64_t j = 0; sums && j < some; ++j) sums[first + j] += total[j];
}

inline void gram_pack(Dtype dtype, const void* from, int64_t start, int64_t row, int64_t n,
                      int64_t columns, int64_t p, const double* shift, const double* root,
                      double* to, double* sums) {
  if (dtype == Dtype::kFloat32)
    gram_pack(static_cast<const float*>(from) + start * row, row, n, columns, p, shift, root, to,
              sums);
  else
    gram_pack(static_cast<const double*>(from) + start * row, row, n, columns, p, shift, root, to,
              sums);
}

struct GramSpace {
  double *packed, *root;

  GramSpace(const Gram& g, void* memory, size_t* bytes) {
    Arena arena(memory);
    const int64_t rows = g.n < kGramChunk ? g.n : kGramChunk;
    packed = arena.take<double>((gram_panels(g.N) + gram_panels(g.O)) * kGramPanel * rows);
    root = arena.take<double>(rows);
    if (bytes) *bytes = arena.bytes();
  }
};

// Adds the product of columns [first, first + kGramRows) of X with panel p, of X or Y, to `to`.
inline void gram_add(const double* a, const double* b, int64_t n, int64_t first, int64_t rows,
                     int64_t column, int64_t columns, bool upper, double* to) {
  alignas(64) double tile[kGramRows * kGramPanel];
  gram_tile(a, b, n, tile);
  for (int64_t i = 0; i < kGramRows && first + i < rows; ++i) {
    const int64_t begin = upper && first + i > column ? first + i - column : 0;
    const int64_t end = columns - column < kGramPanel ? columns - column : kGramPanel;
    double* row = to + (first + i) * columns + column;
    for (int64_t j = begin; j < end; ++j) row[j] += tile[i * kGramPanel + j];
  }
}

inline void gram_chunk(const Gram& g, const GramBuffers& b, int64_t start, int64_t n,
                       const GramSpace& space, Team& team) {
  const int64_t panels = gram_panels(g.N), more = gram_panels(g.O), size = n * kGramPanel;
  for (int64_t k = 0; b.row_weights && k < n; ++k) space.root[k] = ::sqrt(b.row_weights[start + k]);
  const double* root = b.row_weights ? space.root : nullptr;
  team.run(panels + more, [&](int64_t p, int) {
    double* to = space.packed + p * size;
    if (p < panels)
      gram_pack(g.states, b.states, start, b.states_row, n, g.N, p, b.shift, root, to, b.sums);
    else
      gram_pack(g.targets, b.targets, start, b.targets_row, n, g.O, p - panels, b.target_shift,
                root, to, nullptr);
  });
  // The last panels of X have the most work: they go first.
  team.run(panels + more, [&](int64_t ticket, int) {
    const int64_t p = ticket < panels ? panels - 1 - ticket : ticket;
    const bool of_states = p < panels;
    const int64_t column = (of_states ? p : p - panels) * kGramPanel;
    const int64_t rows = of_states && column + kGramPanel < g.N ? column + kGramPanel : g.N;
    for (int64_t first = 0; first < rows; first += kGramRows) {
      const double* a = space.packed + first / kGramPanel * size + first % kGramPanel;
      gram_add(a, space.packed + p * size, n, first, g.N, column, of_states ? g.N : g.O, of_states,
               of_states ? b.gram : b.cross);
    }
  });
}

inline size_t gram_workspace(const Gram& g) {
  size_t bytes = 0;
  GramSpace(g, nullptr, &bytes);
  return bytes;
}

inline bool gram_accumulate(const Gram& g, const GramBuffers& b) {
  const GramSpace space(g, b.workspace, nullptr);
  Team team(g.threads, b.interrupt);
  for (int64_t start = 0; start < g.n && !team.stopped(); start += kGramChunk)
    gram_chunk(g, b, start, g.n - start < kGramChunk ? g.n - start : kGramChunk, space, team);
  return !team.stopped();
}

}  // namespace fastrnn::FASTRNN_ISA
