// Backpropagation through the steps of one layer: from dy to the gradients of the pre-activations.
#pragma once

#include "replay.h"
#include "threads.h"
#include "unpacked.h"

namespace fastrnn::FASTRNN_ISA {

// Sums over rows (dW, db) restart after this many rows of a sample, at fixed places in time.
constexpr int64_t kChunkRows = 256;

// Blocks of steps: whole chunks, so that results do not depend on how many steps a block has.
inline int64_t backward_block_steps(const Problem& p) {
  return smaller(larger(kChunkRows * p.samples / larger(p.B, 1), 1), p.T);
}

// The weights of one direction as the backward pass reads them: packed, or W_ih and W_hh as they
// lie (see few_uses), which are words of its panels.
template <class C, class N>
struct BackwardWeights {
  using F = typename N::Factors;
  using Left = typename F::Left;
  using Sum = typename F::Sum;
  using S = typename N::Storage;
  static constexpr SlotOrder<C::kWx> kIn{C::kDwx};
  static constexpr SlotOrder<C::kRh> kRec{C::kDrh};
  Panels<F> ih, hr;
  Panels<typename N::Recurrent> hh;
  Weights from;

  void lay_out(const Problem& p, Arena& arena) {
    const int64_t O = p.P ? p.P : p.H;
    ih = {nullptr, C::kWx * p.H, p.I, 1};
    hh = {nullptr, C::kRh * p.H, O, 1};
    hr = {nullptr, p.P, p.H, 1};
    if (!few_uses(p, ih)) ih.data = arena.take<Sum>(ih.size());
    if (!few_uses(p, hh)) hh.data = arena.take<Sum>(hh.size());
    hr.data = arena.take<Sum>(p.P ? hr.size() : 0);
  }

  // W_hh first and W_ih last: without a step before the last one, or without dx, they are not
  // needed.
  int64_t panel_count(const BackwardBuffers& b, int64_t T, bool projection) const {
    return recurrent_panels(b, T) + (projection ? hr.count() : 0) +
           (ih.data && b.dx ? ih.count() : 0);
  }

  void pack_panel(int64_t i, const BackwardBuffers& b, int64_t T, bool projection) const {
    static constexpr int kOnly[1] = {0};
    const int64_t recurrent = recurrent_panels(b, T);
    if (i < recurrent)
      return pack_columns_panel<N>(hh, i, static_cast<const S*>(from.w_hh), kRec.gate, C::kRh);
    i -= recurrent;
    if (projection && i < hr.count())
      return pack_columns_panel<N>(hr, i, static_cast<const S*>(from.w_hr), kOnly, 1);
    if (projection) i -= hr.count();
    pack_columns_panel<N>(ih, i, static_cast<const S*>(from.w_ih), kIn.gate, C::kWx);
  }

  // product() of rows of `d`, from its first slot that takes part on, with W_hh, or with W_ih.
  void multiply_recurrent(int64_t begin, int64_t end, int part, bool descending, const Left* d,
                          int64_t ld, int64_t rows, Sum* sums, const Receiver<Sum>& done) const {
    const Sums<typename N::Recurrent> all{sums, false};
    if constexpr (kReadsUnpacked<N>)
      if (!hh.data)
        return unpacked_columns_product(hh, begin, end, static_cast<const S*>(from.w_hh), kRec.gate,
                                        C::kRh, d, ld, rows, all.of_part(part, false).data, done);
    product(hh, begin, end, descending, d, ld, rows, all.of_part(part, all.kept(hh, rows)), done);
  }
  void multiply_inputs(const Left* d, int64_t ld, int64_t rows, Sum* sums,
                       const Receiver<Sum>& done) const {
    if constexpr (kReadsUnpacked<N>)
      if (!ih.data)
        return unpacked_columns_product(ih, 0, ih.count(), static_cast<const S*>(from.w_ih),
                                        kIn.gate, C::kWx, d, ld, rows, sums, done);
    product(ih, 0, ih.count(), false, d, ld, rows, Sums<F>{sums, false}, done);
  }

 private:
  // Whether packing would take longer than it saves. More rows than two tiles have read a panel too
  // often, in pieces that lie a row apart, unless it stays in L2: of rows of whole pages pieces are
  // in few of its sets.
  template <class Factors>
  static bool few_uses(const Problem& p, const Panels<Factors>& w) {
    if (!kReadsUnpacked<N> || p.T > kFewSteps) return false;
    constexpr int64_t kMostRows = kRegisters == 32 ? 32 : kMaxUnpackedRows, kPage = 4096;
    const bool stays = w.k * kMaxColumns * kVectorBytes <= kPanelBytes &&
                       w.units * int64_t(sizeof(S)) % kPage != 0;
    return p.T * p.B <= (stays ? kMostRows : 2 * kRowsAtOnce);
  }
  int64_t recurrent_panels(const BackwardBuffers& b, int64_t T) const {
    return hh.data && (T > 1 || b.dh0) ? hh.count() : 0;
  }
};

// Gradients that the caller can have of each row and unit.
template <class C>
constexpr int kKept = C::kD + C::kState;

// What one block of steps leaves for the gradients of x and the weights. Row i of d is the i-th row
// (t, b) of the block in order of time; those of x, h and m are in the order of panel_row().
template <class C, class N>
struct BlockGradients {
  using Left = typename N::Left;
  Left* d;          // [rows,ld_d]: kD slots of H
  Left* projected;  // [rows,ld_p]: gradient of the projected output, with projection
  // The rows that d and `projected` are multiplied with, in panels of columns, words of rows.
  typename N::Value *x, *h, *m;
};

// The rows of one direction: addresses of everything that belongs to (t, b), and the blocks.
template <class C, class N>
struct BackwardRows : LayerRows<C, N> {
  using Base = LayerRows<C, N>;
  using Base::direction, Base::O, Base::p, Base::time;
  using T = typename N::Value;
  using S = typename N::Storage;
  using Left = typename N::Left;
  static constexpr int kGroup = N::Factors::kGroup;
  int64_t block_steps, sample_rows, max_rows, ld_d, ld_p, ld_state;
  View<const S> dy;
  BlockGradients<C, N> block[2];
  T* ds[C::kState];  // [B,ld_state], gradient of each state as the steps run back
  T* dgates;         // [rows,kKept,H], for the caller; null: not wanted

  void lay_out(const Problem& problem, int which, Arena& arena) {
    Base::describe(problem, which);
    block_steps = backward_block_steps(*p);
    sample_rows = round_up(larger(block_steps * p->B / p->samples, 1), kGroup);
    max_rows = sample_rows * p->samples;
    ld_d = padded<Left>(C::kD * p->H), ld_p = padded<Left>(p->P), ld_state = padded<T>(p->H);
    for (int64_t i = 0; i < kept_blocks(); ++i) {
      auto& b = block[i];
      b.d = arena.take<Left>(max_rows * ld_d + N::kWidth);
      b.projected = arena.take<Left>(p->P ? max_rows * ld_p + N::kWidth : 0);
      b.x = arena.take<T>(columns_size(p->I));
      b.h = arena.take<T>(columns_size(O));
      b.m = arena.take<T>(p->P ? columns_size(p->H) : 0);
    }
    for (int s = 0; s < C::kState; ++s) ds[s] = arena.take<T>(p->B * ld_state);
  }

  void bind(const BackwardBuffers& b) {
    Base::bind(b);
    dy = {b.dy ? static_cast<const S*>(b.dy) + direction * O : nullptr, b.offsets, b.table,
          b.dy_strides};
    const int64_t all_rows = b.offsets ? b.offsets[p->T] : p->T * p->B;
    dgates =
        b.dgates ? static_cast<T*>(b.dgates) + direction * all_rows * kKept<C> * p->H : nullptr;
    // A last, incomplete word reads one number past a row.
    if constexpr (kGroup > 1)
      for (int64_t i = 0; i < kept_blocks() * max_rows; ++i) {
        auto& to = block[i / max_rows];
        if (ld_d > C::kD * p->H) to.d[i % max_rows * ld_d + C::kD * p->H] = Left{};
        if (p->P && ld_p > p->P) to.projected[i % max_rows * ld_p + p->P] = Left{};
      }
  }

  // Elements of one panel of columns before `row`, `columns` wide.
  int64_t columns_offset(int64_t row, int64_t columns) const { return row / kGroup * columns; }
  int64_t columns_size(int64_t n) const {
    return columns_offset(max_rows, round_up(n, N::kWidth * kRowColumns));
  }
  // Where row i of a block is among the rows of panels: each sample's are together.
  int64_t panel_row(int64_t i) const {
    return p->samples == 1 ? i : i % p->samples * sample_rows + i / p->samples;
  }
  int64_t block_count() const { return (p->T + block_steps - 1) / block_steps; }
  int64_t kept_blocks() const { return smaller(block_count(), 2); }
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
  BlockGradients<C, N>& gradients(int64_t k) {
    return block[(time.reverse ? k : block_count() - 1 - k) & 1];
  }
};

// The rows [begin, end) of one direction, from the last step to the first.
template <class C, class N>
class BackwardChain {
 public:
  using S = typename N::Storage;
  using T = typename N::Value;
  using F = typename N::Factors;
  using R = typename N::Recurrent;
  using V = Vec<T>;
  static constexpr int W = V::kWidth;

  [[gnu::noinline]] void lay_out(BackwardRows<C, N>& rows, const BackwardWeights<C, N>& weights,
                                 const ForwardWeights<C, N>& forward, int64_t begin, int64_t end,
                                 int parts, Arena& arena) {
    q_ = &rows, w_ = &weights, begin_ = begin, end_ = end;
    panels_ = {nullptr, parts};
    sums_ = arena.take<T>(larger(Sums<R>::size(w_->hh, end - begin, false, parts),
                                 rows.p->P ? Sums<F>::size(w_->hr, end - begin, false, parts) : 0));
    if (replays<C>(*rows.p)) replay_.lay_out(rows, forward, begin, end, arena);
  }

  void share(Team* team) { panels_.team = team; }

  void bind(const BackwardBuffers& b) {
    const Problem& p = *q_->p;
    const int64_t h = q_->direction * p.B * q_->O, c = q_->direction * p.B * p.H;
    dh_n_ = b.dh_n ? static_cast<const S*>(b.dh_n) + h : nullptr;
    dc_n_ = b.dc_n ? static_cast<const S*>(b.dc_n) + c : nullptr;
    dh0_ = b.dh0 ? static_cast<S*>(b.dh0) + h : nullptr;
    dc0_ = b.dc0 ? static_cast<S*>(b.dc0) + c : nullptr;
    const WeightGradients& g = b.gradients[q_->direction];
    keep_x_ = g.w_ih, keep_h_ = g.w_hh, keep_m_ = g.w_hr;
    options_.relu = p.activation == Activation::kRelu;
    replay_.start();
  }

  void run_block(int64_t j) {
    // With a team its caller asks, between panels, whether to stop: handlers of signals run then.
    const TileScope scope(!panels_.team);
    const int64_t k = q_->block_at(j), low = q_->low(k), high = q_->high(k);
    if (j == 0) load_state_gradients();
    if (begin_ == 0) complete_words(k);
    for (int64_t i = 0; i < high - low; ++i) step(q_->time.reverse ? low + i : high - 1 - i);
    if (j + 1 == q_->block_count()) finish_sequence(q_->time.reverse ? high - 1 : low);
  }

 private:
  int64_t active(int64_t t) const { return larger(smaller(q_->time.active(t), end_) - begin_, 0); }

  void load_state_gradients() {
    const int64_t H = q_->p->H, ld = q_->ld_state;
    load_state<T, S>(nullptr, begin_, end_, H, q_->ds[0], ld);
    for (int s = 1; s < C::kState; ++s) load_state(dc_n_, begin_, end_, H, q_->ds[s], ld);
  }

  void step(int64_t t) {
    const int64_t after = q_->time.reverse ? t - 1 : t + 1;
    const int64_t n = active(t), carried = smaller(n, active(after));
    BlockGradients<C, N>& block = q_->gradients(q_->block_of(t));
    if (replays<C>(*q_->p)) replay_.recall(t, panels_);
    const int64_t first = q_->row_in_block(t, begin_);
    const auto keep = [&](int64_t r, int) {
      const int64_t b = begin_ + r, row = q_->panel_row(first + r);
      if (keep_x_) keep_row(q_->x.row(t, b), block.x, row, q_->p->I);
      if (keep_h_) keep_row(q_->previous_output(t, b), block.h, row, q_->O);
    };
    if (keep_x_ || keep_h_) each_row(n, keep);
    // Rows whose first step, in the direction's own order, was `after` end here.
    const int64_t ended = dh0_ ? active(after) : carried;
    recur(after, ended, [&](int64_t p, int64_t r, int count, const T* dh) {
      const int alive = int(larger(smaller(count, n - r), 0));
      receive(t, r, alive, p, dh, block);
      store_dh0(r + alive, count - alive, p, dh + alive * w_->hh.columns(p) * W);
    });
    each_row(n - carried, [&](int64_t r, int part) { start_row(t, carried + r, part, block); });
    if (q_->p->P) unproject(t, n, block);
  }

  // Through W_hh: the gradient that the step at `t` sends to the output of the step before it, for
  // the first `rows` rows.
  template <class Receive>
  void recur(int64_t t, int64_t rows, const Receive& take) {
    if (rows <= 0) return;
    const auto* d = q_->gradients(q_->block_of(t)).d + q_->row_in_block(t, begin_) * q_->ld_d +
                    w_->kRec.first * q_->p->H;
    panels_.run(w_->hh.count(), [&](int64_t begin, int64_t end, int part) {
      recur(d, t & 1, rows, begin, end, part, take);
    });
  }
  template <class Receive>
  void recur(const typename F::Left* d, bool descending, int64_t rows, int64_t begin, int64_t end,
             int part, const Receive& take) {
    w_->multiply_recurrent(begin, end, part, descending, d, q_->ld_d, rows, sums_, take);
  }

  // A row's last step: its output's gradient starts from dh_n.
  void start_row(int64_t t, int64_t r, int part, BlockGradients<C, N>& block) {
    const Panels<R>& w = w_->hh;
    T* sums = sums_ + part * Sums<R>::kPlace;
    for (int64_t p = 0; p < w.count(); ++p) {
      const int64_t u = p * kMaxColumns * W, n = smaller(w.columns(p) * W, q_->O - u);
      fill_row(sums, T(0), w.columns(p) * W);
      if (dh_n_) convert_row(sums, dh_n_ + (begin_ + r) * q_->O + u, n);
      receive(t, r, 1, p, sums, block);
    }
  }

  // The recurrent part of dh for the units of panel p of some rows has come.
  void receive(int64_t t, int64_t r, int count, int64_t p, const T* dh,
               BlockGradients<C, N>& block) {
    const int columns = w_->hh.columns(p);
    if (!q_->p->P) return differentiate(t, r, count, p, columns, dh, true, block);
    for (int i = 0; i < count; ++i) {
      auto* to = block.projected + q_->row_in_block(t, begin_ + r + i) * q_->ld_p;
      for (int c = 0; c < columns; ++c, dh += W) {
        const int64_t u = (p * kMaxColumns + c) * W;
        const int n = int(smaller(W, q_->O - u));
        V g = V::load(dh);
        if (q_->dy.data) g = g + load_value(q_->dy.row(t, begin_ + r + i) + u, n);
        store_value(to + u, g, n);
      }
    }
  }

  void unproject(int64_t t, int64_t rows, BlockGradients<C, N>& block) {
    const Panels<F>& w = w_->hr;
    const Sums<F> all{sums_, false};
    const int64_t first = q_->row_in_block(t, begin_), H = q_->p->H;
    panels_.run(w.count(), [&](int64_t begin, int64_t end, int part) {
      product(w, begin, end, false, block.projected + first * q_->ld_p, q_->ld_p, rows,
              all.of_part(part, all.kept(w, rows)),
              [&](int64_t p, int64_t r, int count, const T* dm) {
                differentiate(t, r, count, p, w.columns(p), dm, false, block);
              });
    });
    if (keep_m_)
      each_row(rows, [&](int64_t r, int) {
        const T* m = saved_row(t, begin_ + r) + C::kSaved * H;
        keep_row(m, block.m, q_->panel_row(first + r), H);
      });
  }

  // The cell's maths for some rows and the units of one panel; g: gradients of the cell's output,
  // `columns` vectors a row, to which dy is still to be added or not.
  void differentiate(int64_t t, int64_t r, int count, int64_t p, int columns, const T* g,
                     bool add_dy, BlockGradients<C, N>& block) {
    const int64_t H = q_->p->H;
    for (int64_t b = begin_ + r; b < begin_ + r + count; ++b) {
      const S* dy = add_dy && q_->dy.data ? q_->dy.row(t, b) : nullptr;
      const S* before = C::kHoldsOutput ? q_->previous_output(t, b) : nullptr;
      const S* y = C::kReadsOutput ? q_->y.row(t, b) : nullptr;
      const T* kept = saved_row(t, b);
      StateRow<N> states[C::kState];
      for (int s = 1; s < C::kState; ++s) states[s] = previous_state(s, t, b);
      auto* to = block.d + q_->row_in_block(t, b) * q_->ld_d;
      T* dgates = q_->dgates ? q_->dgates + (q_->time.first(t) + b) * kKept<C> * H : nullptr;
      // What forward saved of the step that comes next has left L2 long ago, and lies in pieces.
      const int64_t then = q_->time.before(t);
      const bool far = !replays<C>(*q_->p) && b < q_->time.active(then);
      const T* next = far ? q_->saved_row(then, b) : kept;
      for (int c = 0; c < columns; ++c, g += W) {
        const int64_t u = (p * kMaxColumns + c) * W;
        const int n = int(smaller(W, H - u));
        Arr<V, C::kSaved> saved;
        Arr<V, C::kState> prev, ds;
        for (int i = 0; i < C::kSaved; ++i) {
          saved[i] = V::load(kept + i * H + u, n);
          __builtin_prefetch(next + i * H + u, 0, 2);
        }
        V dh = V::load(g);
        if (dy) dh = dh + load_value(dy + u, n);
        if (C::kHoldsOutput) {
          prev[0] = before ? load_value(before + u, n) : V(0);
          dh = dh + V::load(q_->ds[0] + b * q_->ld_state + u);
        }
        for (int s = 1; s < C::kState; ++s) {
          prev[s] = states[s].load(u, n);
          ds[s] = V::load(q_->ds[s] + b * q_->ld_state + u);
        }
        Arr<V, C::kD> d;
        if (dgates) {
          dh.store(dgates + C::kD * H + u, n);
          for (int s = 1; s < C::kState; ++s) ds[s].store(dgates + (C::kD + s) * H + u, n);
        }
        C::backward(saved, prev, y ? load_value(y + u, n) : V(0), options_, dh, ds, d);
        for (int i = 0; i < C::kD; ++i) store_value(to + i * H + u, d[i], n);
        for (int i = 0; dgates && i < C::kD; ++i) d[i].store(dgates + i * H + u, n);
        for (int s = C::kHoldsOutput ? 0 : 1; s < C::kState; ++s)
          ds[s].store(q_->ds[s] + b * q_->ld_state + u);
      }
    }
  }

  const T* saved_row(int64_t t, int64_t b) const {
    return replays<C>(*q_->p) ? replay_.saved_row(t, b) : q_->saved_row(t, b);
  }
  StateRow<N> previous_state(int s, int64_t t, int64_t b) const {
    return replays<C>(*q_->p) ? replay_.previous_state(s, t, b) : q_->previous_state(s, t, b);
  }

  void store_dh0(int64_t r, int count, int64_t p, const T* dh) {
    for (int64_t b = begin_ + r; b < begin_ + r + count; ++b)
      for (int c = 0; c < w_->hh.columns(p); ++c, dh += W) {
        const int64_t u = (p * kMaxColumns + c) * W;
        V g = V::load(dh);
        if (C::kHoldsOutput) g = g + V::load(q_->ds[0] + b * q_->ld_state + u);
        store_value(dh0_ + b * q_->O + u, g, int(smaller(W, q_->O - u)));
      }
  }

  void finish_sequence(int64_t t) {
    if (dh0_)
      recur(t, active(t),
            [&](int64_t p, int64_t r, int count, const T* dh) { store_dh0(r, count, p, dh); });
    if (dc0_)
      for (int64_t b = begin_; b < end_; ++b)
        convert_row(dc0_ + b * q_->p->H, q_->ds[C::kState - 1] + b * q_->ld_state, q_->p->H);
  }

  // Calls f(r, part) for each of these rows; one or none is not worth a join.
  template <class Function>
  void each_row(int64_t rows, const Function& f) const {
    const auto run = [&](int64_t begin, int64_t end, int part) {
      for (int64_t r = begin; r < end; ++r) f(r, part);
    };
    if (rows > 1)
      panels_.run(rows, run);
    else
      run(0, rows, 0);
  }

  // Copies a row of n features into panels of columns, as a part of the second factor of a sum over
  // rows.
  template <class From>
  void keep_row(const From* from, T* panels, int64_t row, int64_t n) {
    constexpr int64_t width = kRowColumns * W;
    for (int64_t u = 0; u < n; u += width) {
      const int64_t all = round_up(smaller(width, n - u), W);
      T* to = panels + q_->columns_offset(q_->max_rows, u) + q_->columns_offset(row, all);
      for (int64_t i = 0; i < all; i += W)
        F::store_part(to + i, row % F::kGroup,
                      from ? load_value(from + u + i, int(smaller(W, n - u - i))) : V(0));
    }
  }

  // The last word of an odd number of rows has zeros in its other part.
  void complete_words(int64_t k) {
    if (F::kGroup == 1) return;
    const int64_t all = q_->rows_in_block(k), rows = all / q_->p->samples;
    BlockGradients<C, N>& block = q_->gradients(k);
    for (int64_t i = all; i < round_up(rows, F::kGroup) * q_->p->samples; ++i) {
      const int64_t row = q_->panel_row(i);
      const T* zeros = nullptr;
      if (keep_x_) keep_row(zeros, block.x, row, q_->p->I);
      if (keep_h_) keep_row(zeros, block.h, row, q_->O);
      if (keep_m_) keep_row(zeros, block.m, row, q_->p->H);
    }
  }

  BackwardRows<C, N>* q_;
  const BackwardWeights<C, N>* w_;
  Replay<C, N> replay_;
  int64_t begin_, end_;
  PanelTeam panels_;
  T* sums_;
  const S *dh_n_, *dc_n_;
  S *dh0_, *dc0_;
  bool keep_x_, keep_h_, keep_m_;
  Options options_;
};

}  // namespace fastrnn::FASTRNN_ISA
