// Backpropagation through the steps of one layer: from dy to the gradients of the pre-activations.
#pragma once

#include "arena.h"
#include "pack.h"
#include "product.h"
#include "rows.h"
#include "threads.h"

namespace fastrnn::FASTRNN_ISA {

// Sums over rows (dW, db) restart after this many rows, at fixed places in time.
constexpr int64_t kChunkRows = 256;

// Blocks of steps: whole chunks, so that results do not depend on how many steps a block has.
inline int64_t backward_block_steps(const Problem& p) {
  return smaller(larger(kChunkRows / larger(p.B, 1), 1), p.T);
}

// The weights of one direction as the backward pass reads them: transposed.
template <class C, class T>
struct BackwardWeights {
  static constexpr SlotOrder<C::kWx> kIn{C::kDwx};
  static constexpr SlotOrder<C::kRh> kRec{C::kDrh};
  Panels<T> ih, hh, hr;

  void lay_out(const Problem& p, Arena& arena) {
    const int64_t O = p.P ? p.P : p.H;
    ih = {nullptr, C::kWx * p.H, p.I, 1};
    hh = {nullptr, C::kRh * p.H, O, 1};
    hr = {nullptr, p.P, p.H, 1};
    ih.data = arena.take<T>(ih.size());
    hh.data = arena.take<T>(hh.size());
    hr.data = arena.take<T>(p.P ? hr.size() : 0);
  }

  // W_ih last: without dx it is not needed.
  int64_t panel_count(bool input, bool projection) const {
    return hh.count() + (projection ? hr.count() : 0) + (input ? ih.count() : 0);
  }

  void pack_panel(int64_t i, bool projection, const Weights& from) const {
    static constexpr int kOnly[1] = {0};
    if (i < hh.count())
      return pack_columns_panel(hh, i, static_cast<const T*>(from.w_hh), kRec.gate, C::kRh);
    i -= hh.count();
    if (projection && i < hr.count())
      return pack_columns_panel(hr, i, static_cast<const T*>(from.w_hr), kOnly, 1);
    if (projection) i -= hr.count();
    pack_columns_panel(ih, i, static_cast<const T*>(from.w_ih), kIn.gate, C::kWx);
  }
};

// What one block of steps leaves for the gradients of x and the weights. Row i is the i-th row
// (t, b) of the block in order of time.
template <class C, class T>
struct BlockGradients {
  T* d;          // [rows,ld_d]: kD slots of H
  T* projected;  // [rows,ld_p]: gradient of the projected output, with projection
  T *x, *h, *m;  // the rows that d and `projected` are multiplied with, in panels of columns
};

// The rows of one direction: addresses of everything that belongs to (t, b).
template <class C, class T>
struct BackwardRows {
  const Problem* p;
  int direction;
  int64_t O, saved, block_steps, max_rows, ld_d, ld_p, ld_state;
  Timeline time;
  View<const T> x, y, dy;
  const T *reserve, *h0, *c0;
  BlockGradients<C, T> block[2];
  T* ds[C::kState];  // [B,ld_state], gradient of each state as the steps run back

  void lay_out(const Problem& problem, int which, Arena& arena) {
    p = &problem, direction = which;
    O = p->P ? p->P : p->H, saved = C::kSaved + (p->P ? 1 : 0);
    block_steps = backward_block_steps(*p);
    max_rows = larger(block_steps * p->B, 1);
    ld_d = padded<T>(C::kD * p->H), ld_p = padded<T>(p->P), ld_state = padded<T>(p->H);
    for (auto& b : block) {
      b.d = arena.take<T>(max_rows * ld_d + Vec<T>::kWidth);
      b.projected = arena.take<T>(p->P ? max_rows * ld_p + Vec<T>::kWidth : 0);
      b.x = arena.take<T>(columns_size(p->I));
      b.h = arena.take<T>(columns_size(O));
      b.m = arena.take<T>(p->P ? columns_size(p->H) : 0);
    }
    for (int s = 0; s < C::kState; ++s) ds[s] = arena.take<T>(p->B * ld_state);
  }

  void bind(const BackwardBuffers& b) {
    time = {p->T, p->B, b.offsets, direction == 1 || p->reverse};
    x = {static_cast<const T*>(b.x), b.offsets, b.x_strides};
    y = {static_cast<const T*>(b.y) + direction * O, b.offsets, b.y_strides};
    dy = {b.dy ? static_cast<const T*>(b.dy) + direction * O : nullptr, b.offsets, b.dy_strides};
    h0 = b.h0 ? static_cast<const T*>(b.h0) + direction * p->B * O : nullptr;
    c0 = b.c0 ? static_cast<const T*>(b.c0) + direction * p->B * p->H : nullptr;
    const int64_t all_rows = b.offsets ? b.offsets[p->T] : p->T * p->B;
    reserve = static_cast<const T*>(b.reserve) + direction * all_rows * saved * p->H;
  }

  int64_t columns_size(int64_t n) const {
    constexpr int W = Vec<T>::kWidth;
    return round_up(n, W * kMaxColumns) * max_rows;
  }
  int64_t block_count() const { return (p->T + block_steps - 1) / block_steps; }
  int64_t block_of(int64_t t) const { return t / block_steps; }
  // Blocks are numbered in time; the j-th to be worked on is the j-th from the sequence's end.
  int64_t block_at(int64_t j) const { return time.reverse ? j : block_count() - 1 - j; }
  int64_t low(int64_t k) const { return k * block_steps; }
  int64_t high(int64_t k) const { return smaller(low(k) + block_steps, p->T); }
  int64_t row_in_block(int64_t t, int64_t b) const {
    return time.first(t) - time.first(low(block_of(t))) + b;
  }
  int64_t rows_in_block(int64_t k) const {
    return row_in_block(high(k) - 1, 0) + time.active(high(k) - 1);
  }
  BlockGradients<C, T>& gradients(int64_t k) {
    return block[(time.reverse ? k : block_count() - 1 - k) & 1];
  }
  const T* saved_row(int64_t t, int64_t b) const {
    return reserve + (time.first(t) + b) * saved * p->H;
  }
  // The output of the step before t; null: zeros.
  const T* previous_output(int64_t t, int64_t b) const {
    const int64_t before = time.before(t);
    if (b < time.active(before)) return y.row(before, b);
    return h0 ? h0 + b * O : nullptr;
  }
  const T* previous_state(int s, int64_t t, int64_t b) const {
    const int64_t before = time.before(t);
    if (b < time.active(before)) return saved_row(before, b) + C::kStateSlot[s] * p->H;
    return c0 ? c0 + b * p->H : nullptr;
  }
};

// The rows [begin, end) of one direction, from the last step to the first.
template <class C, class T>
class BackwardChain {
 public:
  using V = Vec<T>;
  static constexpr int W = V::kWidth;

  void lay_out(BackwardRows<C, T>& rows, const BackwardWeights<C, T>& weights, int64_t begin,
               int64_t end, int parts, Arena& arena) {
    q_ = &rows, w_ = &weights, begin_ = begin, end_ = end;
    panels_ = {nullptr, parts};
    sums_size_ = round_up(larger(Sums<T>::size(w_->hh, end - begin, false),
                                 rows.p->P ? Sums<T>::size(w_->hr, end - begin, false) : 0),
                          64);
    sums_ = arena.take<T>(sums_size_ * parts);
  }

  void share(Team* team) { panels_.team = team; }

  void bind(const BackwardBuffers& b) {
    const Problem& p = *q_->p;
    const int64_t h = q_->direction * p.B * q_->O, c = q_->direction * p.B * p.H;
    dh_n_ = b.dh_n ? static_cast<const T*>(b.dh_n) + h : nullptr;
    dc_n_ = b.dc_n ? static_cast<const T*>(b.dc_n) + c : nullptr;
    dh0_ = b.dh0 ? static_cast<T*>(b.dh0) + h : nullptr;
    dc0_ = b.dc0 ? static_cast<T*>(b.dc0) + c : nullptr;
    const WeightGradients& g = b.gradients[q_->direction];
    keep_x_ = g.w_ih, keep_h_ = g.w_hh, keep_m_ = g.w_hr;
    options_.relu = p.activation == Activation::kRelu;
  }

  void run_block(int64_t j) {
    const int64_t k = q_->block_at(j), low = q_->low(k), high = q_->high(k);
    if (j == 0) load_state_gradients();
    for (int64_t i = 0; i < high - low; ++i) step(q_->time.reverse ? low + i : high - 1 - i);
    if (j + 1 == q_->block_count()) finish_sequence(q_->time.reverse ? high - 1 : low);
  }

 private:
  int64_t active(int64_t t) const { return larger(smaller(q_->time.active(t), end_) - begin_, 0); }

  void load_state_gradients() {
    const int64_t H = q_->p->H, ld = q_->ld_state;
    load_state<T>(nullptr, begin_, end_, H, q_->ds[0], ld);
    for (int s = 1; s < C::kState; ++s) load_state(dc_n_, begin_, end_, H, q_->ds[s], ld);
  }

  void step(int64_t t) {
    const int64_t after = q_->time.reverse ? t - 1 : t + 1;
    const int64_t n = active(t), carried = smaller(n, active(after));
    BlockGradients<C, T>& block = q_->gradients(q_->block_of(t));
    const int64_t first = q_->row_in_block(t, begin_);
    if (keep_x_) keep_rows(n, block.x, first, q_->p->I, [&](int64_t b) { return q_->x.row(t, b); });
    if (keep_h_)
      keep_rows(n, block.h, first, q_->O, [&](int64_t b) { return q_->previous_output(t, b); });
    // Rows whose first step, in the direction's own order, was `after` end here.
    const int64_t ended = dh0_ ? active(after) : carried;
    recur(after, ended, [&](int64_t p, int64_t r, int count, const T* dh) {
      const int alive = int(larger(smaller(count, n - r), 0));
      receive(t, r, alive, p, dh, block);
      store_dh0(r + alive, count - alive, p, dh + alive * w_->hh.columns(p) * W);
    });
    for (int64_t r = carried; r < n; ++r) start_row(t, r, block);
    if (q_->p->P) unproject(t, n, block);
  }

  // Through W_hh: the gradient that the step at `t` sends to the output of the step before it, for
  // the first `rows` rows.
  template <class Receive>
  void recur(int64_t t, int64_t rows, const Receive& take) {
    if (rows <= 0) return;
    const T* d = q_->gradients(q_->block_of(t)).d + q_->row_in_block(t, begin_) * q_->ld_d +
                 w_->kRec.first * q_->p->H;
    panels_.run(w_->hh.count(), [&](int64_t begin, int64_t end, int part) {
      product(w_->hh, begin, end, t & 1, d, q_->ld_d, rows,
              Sums<T>{sums_ + part * sums_size_, false}, take);
    });
  }

  // A row's last step: its output's gradient starts from dh_n.
  void start_row(int64_t t, int64_t r, BlockGradients<C, T>& block) {
    const Panels<T>& w = w_->hh;
    for (int64_t p = 0; p < w.count(); ++p) {
      const int64_t u = p * kMaxColumns * W, n = smaller(w.columns(p) * W, q_->O - u);
      fill_row(sums_, T(0), w.columns(p) * W);
      if (dh_n_) copy_row(sums_, dh_n_ + (begin_ + r) * q_->O + u, n);
      receive(t, r, 1, p, sums_, block);
    }
  }

  // The recurrent part of dh for the units of panel p of some rows has come.
  void receive(int64_t t, int64_t r, int count, int64_t p, const T* dh,
               BlockGradients<C, T>& block) {
    const int columns = w_->hh.columns(p);
    if (!q_->p->P) return differentiate(t, r, count, p, columns, dh, true, block);
    for (int i = 0; i < count; ++i) {
      T* to = block.projected + q_->row_in_block(t, begin_ + r + i) * q_->ld_p;
      for (int c = 0; c < columns; ++c, dh += W) {
        const int64_t u = (p * kMaxColumns + c) * W;
        const int n = int(smaller(W, q_->O - u));
        V g = V::load(dh);
        if (q_->dy.data) g = g + V::load(q_->dy.row(t, begin_ + r + i) + u, n);
        g.store(to + u, n);
      }
    }
  }

  void unproject(int64_t t, int64_t rows, BlockGradients<C, T>& block) {
    const Panels<T>& w = w_->hr;
    const int64_t first = q_->row_in_block(t, begin_), H = q_->p->H;
    product(w, 0, w.count(), false, block.projected + first * q_->ld_p, q_->ld_p, rows,
            Sums<T>{sums_, false}, [&](int64_t p, int64_t r, int count, const T* dm) {
              differentiate(t, r, count, p, w.columns(p), dm, false, block);
            });
    if (keep_m_)
      keep_rows(rows, block.m, first, H,
                [&](int64_t b) { return q_->saved_row(t, b) + C::kSaved * H; });
  }

  // The cell's maths for some rows and the units of one panel; g: gradients of the cell's output,
  // `columns` vectors a row, to which dy is still to be added or not.
  void differentiate(int64_t t, int64_t r, int count, int64_t p, int columns, const T* g,
                     bool add_dy, BlockGradients<C, T>& block) {
    const int64_t H = q_->p->H;
    for (int64_t b = begin_ + r; b < begin_ + r + count; ++b) {
      const T* dy = add_dy && q_->dy.data ? q_->dy.row(t, b) : nullptr;
      const T* before = C::kHoldsOutput ? q_->previous_output(t, b) : nullptr;
      const T* y = C::kReadsOutput ? q_->y.row(t, b) : nullptr;
      const T* kept = q_->saved_row(t, b);
      const T* states[C::kState];
      for (int s = 1; s < C::kState; ++s) states[s] = q_->previous_state(s, t, b);
      T* to = block.d + q_->row_in_block(t, b) * q_->ld_d;
      for (int c = 0; c < columns; ++c, g += W) {
        const int64_t u = (p * kMaxColumns + c) * W;
        const int n = int(smaller(W, H - u));
        Arr<V, C::kSaved> saved;
        Arr<V, C::kState> prev, ds;
        for (int i = 0; i < C::kSaved; ++i) saved[i] = V::load(kept + i * H + u, n);
        V dh = V::load(g);
        if (dy) dh = dh + V::load(dy + u, n);
        if (C::kHoldsOutput) {
          prev[0] = load_or_zero(before, u, n);
          dh = dh + V::load(q_->ds[0] + b * q_->ld_state + u);
        }
        for (int s = 1; s < C::kState; ++s) {
          prev[s] = load_or_zero(states[s], u, n);
          ds[s] = V::load(q_->ds[s] + b * q_->ld_state + u);
        }
        Arr<V, C::kD> d;
        C::backward(saved, prev, y ? V::load(y + u, n) : V(0), options_, dh, ds, d);
        for (int i = 0; i < C::kD; ++i) d[i].store(to + i * H + u, n);
        for (int s = C::kHoldsOutput ? 0 : 1; s < C::kState; ++s)
          ds[s].store(q_->ds[s] + b * q_->ld_state + u);
      }
    }
  }

  static V load_or_zero(const T* row, int64_t u, int n) { return row ? V::load(row + u, n) : V(0); }

  void store_dh0(int64_t r, int count, int64_t p, const T* dh) {
    for (int64_t b = begin_ + r; b < begin_ + r + count; ++b)
      for (int c = 0; c < w_->hh.columns(p); ++c, dh += W) {
        const int64_t u = (p * kMaxColumns + c) * W;
        V g = V::load(dh);
        if (C::kHoldsOutput) g = g + V::load(q_->ds[0] + b * q_->ld_state + u);
        g.store(dh0_ + b * q_->O + u, int(smaller(W, q_->O - u)));
      }
  }

  void finish_sequence(int64_t t) {
    if (dh0_)
      recur(t, active(t),
            [&](int64_t p, int64_t r, int count, const T* dh) { store_dh0(r, count, p, dh); });
    if (dc0_)
      for (int64_t b = begin_; b < end_; ++b)
        copy_row(dc0_ + b * q_->p->H, q_->ds[C::kState - 1] + b * q_->ld_state, q_->p->H);
  }

  // Copies rows of n features into panels of columns, as the second factor of a sum over rows.
  template <class Source>
  void keep_rows(int64_t rows, T* panels, int64_t first, int64_t n, Source&& source) {
    constexpr int64_t width = kMaxColumns * W;
    for (int64_t r = 0; r < rows; ++r) {
      const T* from = source(begin_ + r);
      for (int64_t u = 0; u < n; u += width) {
        const int64_t valid = smaller(width, n - u), all = round_up(valid, W);
        T* to = panels + u * q_->max_rows + (first + r) * all;
        if (from)
          copy_row(to, from + u, valid);
        else
          fill_row(to, T(0), valid);
        fill_row(to + valid, T(0), all - valid);
      }
    }
  }

  BackwardRows<C, T>* q_;
  const BackwardWeights<C, T>* w_;
  int64_t begin_, end_;
  PanelTeam panels_;
  int64_t sums_size_;
  T* sums_;
  const T *dh_n_, *dc_n_;
  T *dh0_, *dc0_;
  bool keep_x_, keep_h_, keep_m_;
  Options options_;
};

}  // namespace fastrnn::FASTRNN_ISA
