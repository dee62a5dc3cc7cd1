// What a block of steps adds to dW and db, and its dx: whole-block products of the pre-activation
// gradients. Each ticket owns a part of one output, so the order of sums never depends on threads.
#pragma once

#include "backward_chain.h"

namespace fastrnn::FASTRNN_ISA {

// Space of one thread.
template <class N>
struct GradientScratch {
  using T = typename N::Value;
  using F = typename N::Factors;
  static constexpr int64_t kUnits = kTiled<F> ? 64 : 48;  // of one slot, in one ticket
  static constexpr int64_t kRows = kTiled<F> ? 64 : 48;   // of dx, in one ticket
  static constexpr int64_t kMost = kTiled<F> ? 2 * kMaxTileRows : max_tile_rows(kRowColumns);
  static constexpr bool kPackedTiles = !kTiled<F> && kPackedRows < kUnits;  // not all at once
  static_assert(kTiled<F> || kPackedRows == (kPackedTiles ? kMost : kUnits), "room in `packed`");
  static_assert(kUnits % N::kWidth == 0 && kUnits % kMaxTileRows == 0, "packed in whole vectors");
  T *packed, *tile, *zeros, *sums;

  void lay_out(const Panels<F>& ih, Arena& arena) {
    constexpr int W = N::kWidth;
    packed = arena.take<T>(kUnits * kChunkRows + W);
    tile = arena.take<T>(round_up(kMost, kMaxTileRows) * kRowColumns * W);
    zeros = arena.take<T>(kRowColumns * W);
    sums = arena.take<T>(Sums<F>::size(ih, kRows, false));
  }
};

// One factor of a weight gradient: `units` columns of a row-major buffer.
template <class Left>
struct Factor {
  const Left* data;  // the first row's first unit
  int64_t ld;
};

// Adds to c[u, :] the sum over rows of a[row, u] * b[row, :], for `units` units and n columns; b
// in panels of columns, each `max_rows` rows long. `fresh`: c is overwritten.
template <class N>
class OuterProduct {
 public:
  using T = typename N::Value;
  using F = typename N::Factors;
  static constexpr int W = N::kWidth;
  static constexpr int64_t kWidth = kRowColumns * W;

  OuterProduct(const GradientScratch<N>& scratch, Factor<typename F::Left> a, int64_t units,
               int64_t rows)
      : s_(scratch), units_(units), rows_(rows), words_((rows + F::kGroup - 1) / F::kGroup) {
    tiles_ = (units + kMost - 1) / kMost;
    pack(a);
    fill_row(s_.zeros, T(0), kWidth);
  }

  [[gnu::noinline]] void add_to(T* c, int64_t n, const T* b, int64_t max_rows, int64_t first_row,
                                bool fresh) const {
    const int64_t stride = kWidth * max_rows / F::kGroup;
    // Rows of x and of h take turns.
    const bool far = 2 * stride * (n / kWidth) * int64_t(sizeof(T)) > kFarBytes;
    const TileScope scope;
    for (int64_t u = 0; u < n; u += kWidth) {
      const int columns = int((smaller(kWidth, n - u) + W - 1) / W);
      const T* panel = b + (u * max_rows + first_row * columns * W) / F::kGroup;
      const FetchAhead fetch(far && u + kWidth < n ? panel + stride : nullptr, words_, columns,
                             tiles_, false);
      for (int64_t i = 0; i < tiles_; ++i) {
        const int64_t m = begin(i);
        const int count = int(begin(i + 1) - m);
        // Where the sums will be added is not in L1 yet.
        for (int r = 0; r < count; ++r)
          for (int v = 0; v < columns; ++v) __builtin_prefetch(c + (m + r) * n + u + v * W, 1);
        multiply(scope, fetch, columns, i, panel);
        for (int r = 0; r < count; ++r)
          for (int v = 0; v < columns; ++v) {
            T* to = c + (m + r) * n + u + v * W;
            const int valid = int(smaller(W, n - u - v * W));
            const Vec<T> sum = Vec<T>::load(s_.tile + (r * columns + v) * W);
            (fresh ? sum : Vec<T>::load(to, valid) + sum).store(to, valid);
          }
      }
    }
  }

 private:
  static constexpr int64_t kMost = GradientScratch<N>::kMost;
  static constexpr bool kPackedTiles = GradientScratch<N>::kPackedTiles;

  int64_t begin(int64_t tile) const {
    return kTiled<F> ? smaller(tile * kMost, units_) : units_ * tile / tiles_;
  }

  void multiply([[maybe_unused]] const TileScope& scope, [[maybe_unused]] const FetchAhead& fetch,
                int columns, int64_t i, const T* panel) const {
    const int64_t m = begin(i), count = begin(i + 1) - m;
    if constexpr (kTiled<F>) {
      const int64_t ld = packed_words() * F::kGroup;
      const auto* a = reinterpret_cast<const typename F::Left*>(s_.packed) + m * ld;
      const RowTile<F> tile[2] = {
          {a, s_.zeros, s_.tile},
          {a + kTileRows * ld, s_.zeros, s_.tile + kTileRows * columns * W},
      };
      const int tiles = count > kTileRows ? 2 : 1;
      scope.configure(kTileRows, tiles == 2);
      tile_product_amx<F>({panel, columns, words_, panel, false}, kTileRows, ld, 0, tiles, tile);
    } else {
      const auto* a = reinterpret_cast<const typename F::Left*>(packed_tile(i));
      fetch.tile<F, true>(i, columns, int(count))(words_, a, 0, panel, 0, s_.zeros, 0, s_.tile,
                                                  fetch.from(i));
    }
  }
  int64_t packed_words() const { return round_up(words_, W); }
  T* packed_tile(int64_t i) const {
    return s_.packed + (kPackedTiles ? i * words_ * kPackedRows : begin(i));
  }

  // [tile][word of rows][unit], in whole vectors, whose excess the next word or tile overwrites, or
  // [word of rows][unit] of all tiles; of a product in tiles [unit][word], in whole tiles.
  [[gnu::noinline]] void pack(Factor<typename F::Left> a) {
    const auto words = [&](int64_t k, int64_t unit) {
      const int64_t row = k * F::kGroup;
      return F::gather_words(a.data + row * a.ld + unit, a.ld, int(rows_ - row));
    };
    if constexpr (kTiled<F>) {
      const int64_t ld = packed_words();
      for (int64_t m = 0; m < units_; m += kMaxTileRows)
        for (int64_t k = 0; k < words_; k += W)
          transpose_block([&](int i) { return k + i < words_ ? words(k + i, m).v : Native<T>{}; },
                          s_.packed + m * ld + k, ld);
    } else {
      for (int64_t i = 0; i < (kPackedTiles ? tiles_ : 1); ++i) {
        const int64_t first = begin(i), count = (kPackedTiles ? begin(i + 1) : units_) - first;
        for (int64_t k = 0; k < words_; ++k)
          for (int64_t m = 0; m < count; m += W)
            words(k, first + m).store(packed_tile(i) + k * kPackedRows + m);
      }
    }
  }

  const GradientScratch<N>& s_;
  int64_t units_, rows_, words_, tiles_;
};

// db[u] gets the sum over rows of a[row, u], in partial sums of 32 rows, and what rounding takes
// from db is kept in `lost` (Kahan): a bias has no product whose rounding would hide that of its
// sum.
template <class T, class Left>
void sum_rows(Factor<Left> a, int64_t units, int64_t rows, T* db, T* lost, bool fresh) {
  constexpr int W = Vec<T>::kWidth;
  constexpr int64_t kPart = 32;
  for (int64_t u = 0; u < units; u += W) {
    const int n = int(smaller(W, units - u));
    Vec<T> sum(T(0));
    for (int64_t k0 = 0; k0 < rows; k0 += kPart) {
      Vec<T> part(T(0));
      for (int64_t k = k0; k < smaller(k0 + kPart, rows); ++k)
        part = part + load_value(a.data + k * a.ld + u, W);
      sum = sum + part;
    }
    if (fresh) {
      sum.store(db + u, n);
      Vec<T>(T(0)).store(lost + u, n);
      continue;
    }
    const Vec<T> before = Vec<T>::load(db + u, n), exact = sum - Vec<T>::load(lost + u, n);
    const Vec<T> after = before + exact;
    after.store(db + u, n);
    ((after - before) - exact).store(lost + u, n);
  }
}

// The tickets of one block of one direction.
template <class C, class N>
class GradientTickets {
 public:
  using S = typename N::Storage;
  using T = typename N::Value;
  using F = typename N::Factors;

  // `to`: gradients of weights, as values; `lost`: space of both biases.
  void bind(BackwardRows<C, N>& rows, const BackwardWeights<C, N>& weights,
            const BackwardBuffers& b, const WeightGradients& to, T* lost) {
    q_ = &rows, w_ = &weights, to_ = to, lost_ = lost;
    dx_ = {static_cast<S*>(b.dx), b.offsets, b.table, b.dx_strides};
    const auto ranges = [](int64_t n) {
      return (n + GradientScratch<N>::kUnits - 1) / GradientScratch<N>::kUnits;
    };
    ranges_ = ranges(q_->p->H), projection_ranges_ = to_.w_hr ? ranges(q_->p->P) : 0;
    const bool any = to_.w_ih || to_.w_hh || to_.b_ih || to_.b_hh;
    sample_tickets_ = (any ? C::kD * ranges_ : 0) + projection_ranges_;
  }

  int64_t weight_tickets() const { return sample_tickets_ * q_->p->samples; }
  int64_t input_tickets(int64_t k) const {
    constexpr int64_t rows = GradientScratch<N>::kRows;
    return dx_.data ? (q_->rows_in_block(k) + rows - 1) / rows : 0;
  }

  // Block k's share of the weights' gradients; `fresh`: the first block to add to them.
  void weights(int64_t ticket, int64_t k, bool fresh, const GradientScratch<N>& scratch) const {
    const TileScope scope;
    const BlockGradients<C, N>& block = q_->gradients(k);
    const int64_t sample = ticket / sample_tickets_, rows = q_->rows_in_block(k) / q_->p->samples;
    ticket %= sample_tickets_;
    // The first chunk of a block of B > 256 sequences may restart within a step.
    for (int64_t row = 0; row < rows; row += kChunkRows) {
      const Chunk chunk{block, sample, row, smaller(kChunkRows, rows - row), fresh && row == 0};
      if (ticket < projection_ranges_)
        projection_units(ticket, chunk, scratch);
      else
        units((ticket - projection_ranges_) / ranges_, (ticket - projection_ranges_) % ranges_,
              chunk, scratch);
    }
  }

  // dx for some rows of block k; `add`: the other direction has written its share.
  void inputs(int64_t ticket, int64_t k, bool add, const GradientScratch<N>& scratch) const {
    constexpr int W = Vec<T>::kWidth;
    const Panels<F>& w = w_->ih;
    const int64_t first = ticket * GradientScratch<N>::kRows;
    const int64_t rows = smaller(GradientScratch<N>::kRows, q_->rows_in_block(k) - first);
    S* to[GradientScratch<N>::kRows];
    locate(k, first, rows, to);
    const auto* d = q_->gradients(k).d + first * q_->ld_d + w_->kIn.first * q_->p->H;
    const auto done = [&](int64_t p, int64_t r, int count, const T* tile) {
      for (int i = 0; i < count; ++i)
        for (int c = 0; c < w.columns(p); ++c, tile += W) {
          const int64_t u = (p * kMaxColumns + c) * W;
          const int n = int(smaller(W, q_->p->I - u));
          // Both directions' shares are rounded: which one comes first must not matter.
          const Vec<T> sum = rounded_to<S>(Vec<T>::load(tile));
          S* at = to[r + i] + u;
          store_value(at, add ? load_value(at, n) + sum : sum, n);
        }
    };
    w_->multiply_inputs(d, q_->ld_d, rows, scratch.sums, done);
  }

 private:
  // Rows [row, row + count) of one sample's in a block; `fresh`: the first to be added up.
  struct Chunk {
    const BlockGradients<C, N>& block;
    int64_t sample, row, count;
    bool fresh;
  };

  // The chunk's rows of a buffer in the block's order, in which samples take turns.
  Factor<typename N::Left> factor(const Chunk& c, const typename N::Left* from, int64_t ld) const {
    const int64_t samples = q_->p->samples;
    return {from + (c.row * samples + c.sample) * ld, ld * samples};
  }
  int64_t panel_row(const Chunk& c) const { return c.sample * q_->sample_rows + c.row; }

  void units(int64_t slot, int64_t range, const Chunk& c, const GradientScratch<N>& scratch) const {
    const int64_t H = q_->p->H, u = range * GradientScratch<N>::kUnits, all = C::kWx * H;
    const int64_t n = smaller(GradientScratch<N>::kUnits, H - u);
    const Factor<typename N::Left> d = factor(c, c.block.d + slot * H + u, q_->ld_d);
    const OuterProduct<N> outer(scratch, d, n, c.count);
    const auto add = [&](void* w, int64_t columns, const T* rows, void* bias, T* lost, int gate) {
      if (gate < 0) return;
      const int64_t first = c.sample * all + gate * H + u;
      if (w)
        outer.add_to(static_cast<T*>(w) + first * columns, columns, rows, q_->max_rows,
                     panel_row(c), c.fresh);
      if (bias) sum_rows(d, n, c.count, static_cast<T*>(bias) + first, lost + first, c.fresh);
    };
    add(to_.w_ih, q_->p->I, c.block.x, to_.b_ih, lost_, gate_of(C::kDwx, slot));
    add(to_.w_hh, q_->O, c.block.h, to_.b_hh, lost_ + q_->p->samples * all, gate_of(C::kDrh, slot));
  }

  void projection_units(int64_t range, const Chunk& c, const GradientScratch<N>& scratch) const {
    const int64_t H = q_->p->H, P = q_->p->P, u = range * GradientScratch<N>::kUnits;
    const int64_t n = smaller(GradientScratch<N>::kUnits, P - u);
    const OuterProduct<N> outer(scratch, factor(c, c.block.projected + u, q_->ld_p), n, c.count);
    outer.add_to(static_cast<T*>(to_.w_hr) + (c.sample * P + u) * H, H, c.block.m, q_->max_rows,
                 panel_row(c), c.fresh);
  }

  template <int G>
  static int gate_of(const int (&slot_of_gate)[G], int64_t slot) {
    for (int g = 0; g < G; ++g)
      if (slot_of_gate[g] == slot) return g;
    return -1;
  }

  void locate(int64_t k, int64_t first, int64_t rows, S** to) const {
    int64_t t = q_->low(k);
    for (int64_t i = 0; i < rows; ++i) {
      while (first + i >= q_->row_in_block(t, 0) + q_->time.active(t)) ++t;
      to[i] = dx_.row(t, first + i - q_->row_in_block(t, 0));
    }
  }

  BackwardRows<C, N>* q_;
  const BackwardWeights<C, N>* w_;
  WeightGradients to_;
  View<S> dx_;
  T* lost_;
  int64_t ranges_, projection_ranges_, sample_tickets_;
};

}  // namespace fastrnn::FASTRNN_ISA
