// The chains through time of a second derivative: the derivative of the forward pass in a direction
// v of all its inputs, and that of the backward pass. A cell's own maths does both, in dual
// numbers; products with anything but W_hh are the caller's, for all steps at once.
#pragma once

#include "../simd/dual.h"
#include "backward_chain.h"

namespace fastrnn::FASTRNN_ISA {

// W_hh for the products of the forward and of the backward pass.
template <class C, class N>
struct SecondOrderWeights {
  using S = typename N::Storage;
  static constexpr SlotOrder<C::kRh> kRec{C::kDrh};
  Panels<typename N::Factors> forward, backward;

  void lay_out(const Problem& p, Arena& arena) {
    forward = {nullptr, p.H, p.H, C::kRh};
    backward = {nullptr, C::kRh * p.H, p.H, 1};
    forward.data = arena.take<S>(forward.size());
    backward.data = arena.take<S>(backward.size());
  }
  int64_t panel_count() const { return forward.count() + backward.count(); }
  void pack_panel(int64_t i, const S* w_hh) const {
    if (i < forward.count()) return pack_rows_panel<N>(forward, i, w_hh, nullptr);
    pack_columns_panel<N>(backward, i - forward.count(), w_hh, kRec.gate, C::kRh);
  }
};

// The rows [begin, end): a step forwards for each step in time, then a step backwards for each.
template <class C, class N>
class SecondOrderChain {
 public:
  using T = typename N::Value;
  using F = typename N::Factors;
  using V = Vec<T>;
  using D = Dual<V>;
  static constexpr int W = V::kWidth;
  // What the steps backwards need of the steps forwards, for each row and unit: the saved values,
  // and the output if the cell reads it, as dual numbers; and the derivatives of the further states
  // before the step, whose values the caller has.
  static constexpr int kDuals = C::kSaved + (C::kReadsOutput ? 1 : 0);
  static constexpr int kRecorded = 2 * kDuals + C::kState - 1;

  void lay_out(const Problem& p, T* record, const SecondOrderWeights<C, N>& weights, int64_t begin,
               int64_t end, Arena& arena) {
    p_ = &p, w_ = &weights, record_ = record, begin_ = begin, rows_ = end - begin;
    ld_ = padded<T>(p.H), ld_d_ = padded<T>(C::kD * p.H);
    for (T*& state : state_) state = arena.take<T>(rows_ * ld_);
    next_ = arena.take<T>(rows_ * ld_);
    d_ = arena.take<T>(rows_ * ld_d_);
    sums_ = arena.take<T>(larger(Sums<F>::size(w_->forward, rows_, false),
                                 Sums<F>::size(w_->backward, rows_, false)));
  }

  void bind(const SecondOrderBuffers& b) {
    b_ = &b;
    time_ = {p_->T, p_->B, b.offsets, p_->reverse};
    options_.relu = p_->activation == Activation::kRelu;
    for (int s = 0; s < C::kState; ++s) {
      fill_row(state_[s], T(0), rows_ * ld_);
      each_row([&](int64_t r) { copy_row(state_[s] + r * ld_, row(b.v_initial[s], r), p_->H); });
    }
  }

  void run_step(int64_t i) {
    if (i < p_->T) step_forward(i);
    if (i == p_->T - 1) turn();
    if (i >= p_->T) step_backward(2 * p_->T - 1 - i);
    if (i == 2 * p_->T - 1) each_state(b_->d_initial);
  }

 private:
  T* row(const void* states, int64_t r) const {
    return static_cast<T*>(const_cast<void*>(states)) + (begin_ + r) * p_->H;
  }
  template <class Body>
  void each_row(const Body& body) const {
    for (int64_t r = 0; r < rows_; ++r) body(r);
  }
  void each_state(void* const* to) const {
    for (int s = 0; s < C::kState; ++s)
      each_row([&](int64_t r) { copy_row(row(to[s], r), state_[s] + r * ld_, p_->H); });
  }

  // The states' derivatives are final, and what returns through the states starts from zero.
  void turn() {
    each_state(b_->v_final);
    for (T* state : state_) fill_row(state, T(0), rows_ * ld_);
  }

  int64_t active(int64_t t) const {
    return larger(smaller(time_.active(t), begin_ + rows_) - begin_, 0);
  }
  int64_t first_row(int64_t t) const { return time_.first(t) + begin_; }

  // Slot i, units [u, u + n) of a row of a [rows,width,H] buffer; null: zeros.
  V read(const void* from, int64_t row, int width, int i, int64_t u, int n) const {
    if (!from) return V(0);
    return V::load(static_cast<const T*>(from) + (row * width + i) * p_->H + u, n);
  }
  void write(void* to, int64_t row, int width, int i, int64_t u, int n, V v) const {
    v.store(static_cast<T*>(to) + (row * width + i) * p_->H + u, n);
  }
  void record(int64_t row, int i, int64_t u, int n, D x) const {
    write(record_, row, kRecorded, 2 * i, u, n, x.v);
    write(record_, row, kRecorded, 2 * i + 1, u, n, x.d);
  }
  D recorded(int64_t row, int i, int64_t u, int n) const {
    return {read(record_, row, kRecorded, 2 * i, u, n),
            read(record_, row, kRecorded, 2 * i + 1, u, n)};
  }

  void step_forward(int64_t s) {
    const int64_t t = time_.time(s), n = active(t);
    const Panels<F>& w = w_->forward;
    product(w, 0, w.count(), s & 1, state_[0], ld_, n, Sums<F>{sums_, false},
            [&](int64_t p, int64_t r, int count, const T* vrh) {
              for (int c = 0; c < w.columns(p); c += C::kRh)
                for (int i = 0; i < count; ++i)
                  forward(first_row(t), r + i, w.unit(p, c), vrh + (i * w.columns(p) + c) * W);
            });
    for (int64_t r = 0; r < n; ++r) copy_row(state_[0] + r * ld_, next_ + r * ld_, p_->H);
  }

  // vrh: derivatives of the recurrent products of row r, a vector for each gate.
  void forward(int64_t first, int64_t r, int64_t u, const T* vrh) {
    const int64_t row = first + r;
    const int n = int(smaller(W, p_->H - u));
    typename C::template In<D> in;
    for (int g = 0; g < C::kWx; ++g)
      in.wx[g] = {read(b_->wx, row, C::kWx, g, u, n), read(b_->v_wx, row, C::kWx, g, u, n)};
    for (int g = 0; g < C::kRh; ++g)
      in.rh[g] = {read(b_->rh, row, C::kRh, g, u, n),
                  read(b_->v_rh, row, C::kRh, g, u, n) + V::load(vrh + g * W)};
    for (int s = 0; s < C::kState; ++s) {
      in.prev[s] = {read(b_->before[s], row, 1, 0, u, n), V::load(state_[s] + r * ld_ + u)};
      if (s == 0) write(b_->v_before, row, 1, 0, u, n, in.prev[s].d);
      if (s > 0) write(record_, row, kRecorded, 2 * kDuals + s - 1, u, n, in.prev[s].d);
    }
    Arr<D, C::kState> out;
    Arr<D, C::kSaved> saved;
    cell_forward<C>(in, options_, out, saved);
    for (int i = 0; i < C::kSaved; ++i) record(row, i, u, n, saved[i]);
    if (C::kReadsOutput) record(row, C::kSaved, u, n, out[0]);
    write(b_->v_y, row, 1, 0, u, n, out[0].d);
    out[0].d.store(next_ + r * ld_ + u);
    for (int s = 1; s < C::kState; ++s) out[s].d.store(state_[s] + r * ld_ + u);
  }

  // After it state_ has the derivatives of the gradients of the states before the step.
  void step_backward(int64_t s) {
    const int64_t t = time_.time(s), n = active(t);
    for (int64_t r = 0; r < n; ++r)
      for (int64_t u = 0; u < p_->H; u += W) backward(first_row(t), r, u);
    const Panels<F>& w = w_->backward;
    product(w, 0, w.count(), s & 1, d_ + w_->kRec.first * p_->H, ld_d_, n, Sums<F>{sums_, false},
            [&](int64_t p, int64_t r, int count, const T* dh) {
              for (int i = 0; i < count; ++i)
                for (int c = 0; c < w.columns(p); ++c, dh += W) {
                  const int64_t u = w.unit(p, c);
                  T* to = state_[0] + (r + i) * ld_ + u;
                  const V through =
                      read(b_->through, first_row(t) + r + i, 1, 0, u, int(smaller(W, p_->H - u)));
                  (V::load(to) + V::load(dh) + through).store(to);
                }
            });
  }

  void backward(int64_t first, int64_t r, int64_t u) {
    const int64_t row = first + r;
    const int n = int(smaller(W, p_->H - u));
    Arr<D, C::kSaved> saved;
    for (int i = 0; i < C::kSaved; ++i) saved[i] = recorded(row, i, u, n);
    const D y = C::kReadsOutput ? recorded(row, C::kSaved, u, n) : D(0);
    Arr<D, C::kState> prev, gradient;
    for (int s = 0; s < C::kState; ++s) {
      const V v = s == 0 ? read(b_->v_before, row, 1, 0, u, n)
                         : read(record_, row, kRecorded, 2 * kDuals + s - 1, u, n);
      prev[s] = {read(b_->before[s], row, 1, 0, u, n), v};
      gradient[s] = {read(b_->dgates, row, kKept<C>, C::kD + s, u, n),
                     V::load(state_[s] + r * ld_ + u)};
    }
    const D dy = gradient[0];
    gradient[0] = D(0);
    Arr<D, C::kD> d;
    C::backward(saved, prev, y, options_, dy, gradient, d);
    for (int i = 0; i < C::kD; ++i) {
      write(b_->d, row, C::kD, i, u, n, d[i].d);
      d[i].d.store(d_ + r * ld_d_ + i * p_->H + u, n);
    }
    for (int s = 0; s < C::kState; ++s) gradient[s].d.store(state_[s] + r * ld_ + u);
  }

  const Problem* p_;
  const SecondOrderWeights<C, N>* w_;
  const SecondOrderBuffers* b_;
  int64_t begin_, rows_, ld_, ld_d_;
  T* state_[C::kState];  // [rows,ld]: derivatives of the states, then of their gradients
  T *next_, *d_, *sums_, *record_;
  Timeline time_;
  Options options_;
};

template <class C, class N>
struct SecondOrderPass {
  SecondOrderWeights<C, N> weights;
  UpTo<SecondOrderChain<C, N>, kMaxGroups> chains;

  SecondOrderPass(const Problem& p, int64_t rows, Arena& arena) {
    const int groups = group_count(p);
    using Chain = SecondOrderChain<C, N>;
    weights.lay_out(p, arena);
    auto* record = arena.take<typename N::Value>(rows * Chain::kRecorded * p.H);
    for (int g = 0; g < groups; ++g)
      chains.add().lay_out(p, record, weights, p.B * g / groups, p.B * (g + 1) / groups, arena);
  }
};

template <class C, class N>
size_t second_order_workspace(const Problem& p, int64_t rows) {
  Arena arena(nullptr);
  SecondOrderPass<C, N> pass(p, rows, arena);
  return arena.bytes();
}

template <class C, class N>
bool second_order(const Problem& p, const SecondOrderBuffers& b) {
  Arena arena(b.workspace);
  SecondOrderPass<C, N> pass(p, b.offsets ? b.offsets[p.T] : p.T * p.B, arena);
  Team team(team_size(p), b.interrupt);
  team.run(pass.weights.panel_count(), [&](int64_t i, int) {
    pass.weights.pack_panel(i, static_cast<const typename N::Storage*>(b.w_hh));
  });
  if (team.stopped()) return false;
  for (int g = 0; g < pass.chains.count(); ++g) pass.chains[g].bind(b);
  team.run_chains(pass.chains.count(), 2 * p.T,
                  [&](int64_t chain, int64_t i) { pass.chains[chain].run_step(i); });
  return !team.stopped();
}

}  // namespace fastrnn::FASTRNN_ISA
