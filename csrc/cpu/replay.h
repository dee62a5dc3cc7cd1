// What forward() did not keep for the backward pass, computed again from y and checkpoints.
#pragma once

#include "forward.h"

namespace fastrnn::FASTRNN_ISA {

template <class C>
bool replays(const Problem& p) {
  return p.checkpoint_every > 0 && saved_values<C>(p) > 0;
}

// A previous state of one row: as the engine keeps it, or as the caller gave it; zeros if neither.
template <class N>
struct StateRow {
  const typename N::Value* kept = nullptr;
  const typename N::Storage* initial = nullptr;

  Vec<typename N::Value> load(int64_t u, int n) const {
    if (kept) return load_value(kept + u, n);
    return initial ? load_value(initial + u, n) : Vec<typename N::Value>(0);
  }
};

// The rows of one direction: addresses of everything forward() read and left that belongs to (t,
// b).
template <class C, class N>
struct LayerRows {
  using S = typename N::Storage;
  using T = typename N::Value;
  const Problem* p;
  int direction;
  int64_t O, saved;
  Timeline time;
  View<const S> x, y;
  const T* reserve;  // or checkpoints
  const S *h0, *c0;

  void describe(const Problem& problem, int which) {
    p = &problem, direction = which;
    O = p->P ? p->P : p->H, saved = saved_values<C>(problem);
  }
  void bind(const BackwardBuffers& b) {
    time = {p->T, p->B, b.offsets, direction == 1 || p->reverse};
    x = {static_cast<const S*>(b.x), b.offsets, b.table, b.x_strides};
    y = {static_cast<const S*>(b.y) + direction * O, b.offsets, b.table, b.y_strides};
    h0 = b.h0 ? static_cast<const S*>(b.h0) + direction * p->B * O : nullptr;
    c0 = b.c0 ? static_cast<const S*>(b.c0) + direction * p->B * p->H : nullptr;
    const int64_t all_rows = b.offsets ? b.offsets[p->T] : p->T * p->B;
    reserve = static_cast<const T*>(b.reserve) +
              direction * (p->checkpoint_every ? checkpoint_size<C>(*p) : all_rows * saved * p->H);
  }

  // The output of the step before t; null: zeros.
  const S* previous_output(int64_t t, int64_t b) const {
    const int64_t before = time.before(t);
    if (b < time.active(before)) return y.row(before, b);
    return h0 ? h0 + b * O : nullptr;
  }
  const S* initial_state(int64_t b) const { return c0 ? c0 + b * p->H : nullptr; }
  const T* saved_row(int64_t t, int64_t b) const {
    return reserve + (time.first(t) + b) * saved * p->H;
  }
  StateRow<N> previous_state(int s, int64_t t, int64_t b) const {
    const int64_t before = time.before(t);
    if (b < time.active(before)) return {saved_row(before, b) + C::kStateSlot[s] * p->H};
    return {nullptr, initial_state(b)};
  }
};

// Computes the steps of one checkpoint's segment again, for the rows [begin, end) of a direction.
// Their outputs being known, the recurrent product is one product for many steps, like that of the
// inputs; what is left to do in order is the cell's maths.
template <class C, class N>
class Replay {
 public:
  using T = typename N::Value;
  using F = typename N::Factors;
  using R = typename N::Recurrent;
  using V = Vec<T>;
  static constexpr int W = V::kWidth;

  [[gnu::noinline]] void lay_out(const LayerRows<C, N>& rows, const ForwardWeights<C, N>& weights,
                                 int64_t begin, int64_t end, Arena& arena) {
    q_ = &rows, w_ = &weights, begin_ = begin, rows_ = end - begin;
    const Problem& p = *q_->p;
    every_ = smaller(p.checkpoint_every, p.T);
    block_steps_ = smaller(larger(kForwardBlockRows / larger(rows_, 1), 1), every_);
    const int64_t block_rows = block_steps_ * rows_;
    x_.lay_out(block_rows, p.I, arena);
    h_.lay_out(block_rows, q_->O, arena);
    wx_ = arena.take<T>(Sums<F>::size(weights.ih.panels, block_rows, true));
    rh_ = arena.take<T>(Sums<R>::size(weights.hh.panels, block_rows, true));
    start_ = arena.take<int64_t>(block_steps_ + 1);
    saved_ = arena.take<T>(every_ * rows_ * q_->saved * p.H);
  }

  void start() { segment_ = -1; }

  // Makes the rows of the step at time t available.
  void recall(int64_t t, const PanelTeam& panels) {
    const int64_t segment = step_of(t) / q_->p->checkpoint_every;
    if (segment == segment_) return;
    segment_ = segment;
    const int64_t first = segment * q_->p->checkpoint_every;
    const int64_t end = smaller(first + q_->p->checkpoint_every, q_->p->T);
    for (int64_t s = first; s < end; s += block_steps_)
      run_steps(s, smaller(s + block_steps_, end), panels);
  }

  const T* saved_row(int64_t t, int64_t b) const {
    const int64_t in_segment = step_of(t) % q_->p->checkpoint_every;
    return saved_ + (in_segment * rows_ + b - begin_) * q_->saved * q_->p->H;
  }
  StateRow<N> previous_state(int s, int64_t t, int64_t b) const {
    const Problem& p = *q_->p;
    const int64_t step = step_of(t), before = q_->time.before(t);
    if (step % p.checkpoint_every == 0) {
      const int64_t row = step / p.checkpoint_every * p.B + b;
      return {q_->reserve + (row * (C::kState - 1) + s - 1) * p.H};
    }
    if (b < q_->time.active(before)) return {saved_row(before, b) + C::kStateSlot[s] * p.H};
    return {nullptr, q_->initial_state(b)};
  }

 private:
  int64_t step_of(int64_t t) const { return q_->time.time(t); }  // its own inverse
  int64_t active(int64_t t) const {
    return larger(smaller(q_->time.active(t), begin_ + rows_) - begin_, 0);
  }

  void run_steps(int64_t s0, int64_t s1, const PanelTeam& panels) {
    int64_t rows = 0;
    for (int64_t s = s0; s < s1; ++s) {
      const int64_t t = q_->time.time(s), n = active(t);
      start_[s - s0] = rows;
      rows += n;
    }
    panels.run(s1 - s0, [&](int64_t begin, int64_t end, int) {
      for (int64_t s = s0 + begin; s < s0 + end; ++s) {
        const int64_t t = q_->time.time(s);
        for (int64_t r = 0; r < active(t); ++r) {
          x_.set(start_[s - s0] + r, q_->x.row(t, begin_ + r));
          h_.set(start_[s - s0] + r, q_->previous_output(t, begin_ + r));
        }
      }
    });
    multiply(w_->ih.panels, x_, rows, wx_, panels);
    multiply(w_->hh.panels, h_, rows, rh_, panels);
    panels.run(w_->hh.panels.count(), [&](int64_t begin, int64_t end, int) {
      for (int64_t p = begin; p < end; ++p)
        for (int64_t s = s0; s < s1; ++s) finish(q_->time.time(s), start_[s - s0], rows, p);
    });
  }

  template <class M>
  void multiply(const Panels<M>& w, const Operand<N>& a, int64_t rows, T* sums,
                const PanelTeam& panels) {
    panels.run(w.count(), [&](int64_t begin, int64_t end, int) {
      product(w, begin, end, false, a.factors(0), a.ld(), rows, Sums<M>{sums, true},
              [](int64_t, int64_t, int, T*) {});
    });
  }

  // The cell's maths for the step at t, whose rows start at `first` of a block of `rows` rows, and
  // the units of panel p.
  void finish(int64_t t, int64_t first, int64_t rows, int64_t p) {
    constexpr int G = C::kWx;
    const Panels<R>& w = w_->hh.panels;
    const int columns = w.columns(p);
    const int64_t n = active(t), at = p * rows * w.columns() * W;
    for (int64_t r = 0; r < n; ++r) {
      const int64_t tile = at + (first + r) * columns * W;
      T* to = saved_ + (saved_row(t, begin_ + r) - saved_);
      StateRow<N> states[C::kState];
      for (int s = 1; s < C::kState; ++s) states[s] = previous_state(s, t, begin_ + r);
      for (int c = 0; c < columns; c += G) {
        const int64_t u = w.unit(p, c);
        const int valid = int(smaller(W, q_->p->H - u));
        typename C::template In<V> in;
        for (int g = 0; g < G; ++g) {
          in.wx[g] = V::load(wx_ + tile + (c + g) * W);
          in.rh[g] = V::load(rh_ + tile + (c + g) * W);
        }
        if (C::kHoldsOutput) in.prev[0] = h_.load(first + r, u);
        for (int s = 1; s < C::kState; ++s) in.prev[s] = states[s].load(u, valid);
        Arr<V, C::kState> out;
        Arr<V, C::kSaved> saved;
        cell_forward<C>(in, options(), out, saved);
        for (int i = 0; i < C::kSaved; ++i) saved[i].store(to + i * q_->p->H + u, valid);
        if (q_->p->P) out[0].store(to + C::kSaved * q_->p->H + u, valid);
      }
    }
  }

  Options options() const { return {q_->p->activation == Activation::kRelu}; }

  const LayerRows<C, N>* q_;
  const ForwardWeights<C, N>* w_;
  int64_t begin_, rows_, every_, block_steps_, segment_ = -1;
  Operand<N> x_, h_;
  T *wx_, *rh_, *saved_;
  int64_t* start_;
};

}  // namespace fastrnn::FASTRNN_ISA
