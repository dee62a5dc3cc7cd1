// The forward pass of one layer: input products for a block of steps, then the recurrent steps.
#pragma once

#include "arena.h"
#include "pack.h"
#include "product.h"
#include "rows.h"
#include "threads.h"

namespace fastrnn::FASTRNN_ISA {

// The weights of one direction as the forward pass reads them.
template <class C, class T>
struct ForwardWeights {
  Panels<T> ih, hh, hr;

  void lay_out(const Problem& p, Arena& arena) {
    const int64_t O = p.P ? p.P : p.H;
    ih = {nullptr, p.I, p.H, C::kWx};
    hh = {nullptr, O, p.H, C::kRh};
    hr = {nullptr, p.H, p.P, 1};
    ih.data = arena.take<T>(ih.size());
    hh.data = arena.take<T>(hh.size());
    hr.data = arena.take<T>(p.P ? hr.size() : 0);
  }

  int64_t panel_count() const { return ih.count() + hh.count() + hr.count(); }

  void pack_panel(int64_t i, const Weights& from) const {
    if (i < ih.count())
      return pack_rows_panel(ih, i, static_cast<const T*>(from.w_ih),
                             static_cast<const T*>(from.b_ih));
    i -= ih.count();
    if (i < hh.count())
      return pack_rows_panel(hh, i, static_cast<const T*>(from.w_hh),
                             static_cast<const T*>(from.b_hh));
    pack_rows_panel(hr, i - hh.count(), static_cast<const T*>(from.w_hr),
                    static_cast<const T*>(nullptr));
  }
};

// Rows of the input product that are made at once: enough to reuse each panel of W_ih, few enough
// for the result to stay in L2 until the steps have read it.
constexpr int64_t kForwardBlockRows = 128;

// The rows [begin, end) of one direction, from the first step to the last. Chains share nothing
// that they write, so they run on any thread in any order.
template <class C, class T>
class ForwardChain {
 public:
  using V = Vec<T>;
  static constexpr int W = V::kWidth;
  static_assert(C::kWx == C::kRh, "input and recurrent product share their panels' geometry");

  // `parts`: how many threads share the panels of each product, if share() gives a team.
  void lay_out(const Problem& p, int direction, int64_t begin, int64_t end, int64_t block_steps,
               int parts, const ForwardWeights<C, T>& weights, Arena& arena) {
    p_ = &p, w_ = &weights, direction_ = direction, begin_ = begin, end_ = end;
    panels_ = {nullptr, parts};
    O_ = p.P ? p.P : p.H;
    rows_ = end - begin;
    block_steps_ = block_steps;
    ld_operand_ = padded<T>(O_), ld_state_ = padded<T>(p.H), ld_x_ = padded<T>(p.I);
    for (auto& operand : operand_) operand = arena.take<T>(rows_ * ld_operand_);
    for (int s = 1; s < C::kState; ++s) state_[s] = arena.take<T>(rows_ * ld_state_);
    unprojected_ = arena.take<T>(p.P ? rows_ * ld_state_ : 0);
    const int64_t block_rows = block_steps_ * rows_;
    gathered_ = arena.take<T>(block_rows * ld_x_);
    wx_ = arena.take<T>(Sums<T>::size(weights.ih, block_rows, true));
    sums_size_ = round_up(larger(Sums<T>::size(weights.hh, rows_, false),
                                 p.P ? Sums<T>::size(weights.hr, rows_, false) : 0),
                          64);
    sums_ = arena.take<T>(sums_size_ * parts);
    start_ = arena.take<int64_t>(block_steps_ + 1);
  }

  void bind(const ForwardBuffers& b) {
    time_ = {p_->T, p_->B, b.offsets, direction_ == 1 || p_->reverse};
    x_ = {static_cast<const T*>(b.x), b.offsets, b.x_strides};
    y_ = {static_cast<T*>(b.y) + direction_ * O_, b.offsets, b.y_strides};
    h_n_ = static_cast<T*>(b.h_n) + direction_ * p_->B * O_;
    c_n_ = C::kState > 1 ? static_cast<T*>(b.c_n) + direction_ * p_->B * p_->H : nullptr;
    h0_ = b.h0 ? static_cast<const T*>(b.h0) + direction_ * p_->B * O_ : nullptr;
    c0_ = b.c0 ? static_cast<const T*>(b.c0) + direction_ * p_->B * p_->H : nullptr;
    const int64_t all_rows = b.offsets ? b.offsets[p_->T] : p_->T * p_->B;
    saved_ = C::kSaved + (p_->P ? 1 : 0);
    reserve_ = p_->training && saved_
                   ? static_cast<T*>(b.reserve) + direction_ * all_rows * saved_ * p_->H
                   : nullptr;
    options_.relu = p_->activation == Activation::kRelu;
  }

  // For a stream, in place of bind() and run_block(): step s, by itself, of a sequence without end.
  void step_alone(const T* x, int64_t x_row, T* y, int64_t y_row, int64_t s) {
    x_ = {x, nullptr, {0, x_row}};
    y_ = {y, nullptr, {0, y_row}};
    multiply_inputs(0, 1);
    step(s, 0);
  }

  void set_state(const T* h, const T* c) {
    time_ = {INT64_MAX, p_->B, nullptr, false};
    reserve_ = h_n_ = nullptr;
    options_.relu = p_->activation == Activation::kRelu;
    h0_ = h, c0_ = c;
    load_initial_states();
  }

  // After `steps` steps.
  void get_state(T* h, T* c, int64_t steps) const {
    for (int64_t r = 0; r < rows_; ++r) {
      copy_row(h + r * O_, operand_[steps & 1] + r * ld_operand_, O_);
      if (C::kState > 1) copy_row(c + r * p_->H, state_[C::kState - 1] + r * ld_state_, p_->H);
    }
  }

  void share(Team* team) { panels_.team = team; }

  int64_t block_count() const { return (p_->T + block_steps_ - 1) / block_steps_; }

  void run_block(int64_t block) {
    if (block == 0) load_initial_states();
    const int64_t s0 = block * block_steps_, s1 = smaller(s0 + block_steps_, p_->T);
    const int64_t low = smaller(time_.time(s0), time_.time(s1 - 1));
    multiply_inputs(low, low + s1 - s0);
    for (int64_t s = s0; s < s1; ++s) step(s, time_.time(s) - low);
    if (s1 == p_->T && C::kState > 1)
      for (int64_t r = 0; r < rows_; ++r)
        copy_row(c_n_ + (begin_ + r) * p_->H, state_[1] + r * ld_state_, p_->H);
  }

 private:
  int64_t active(int64_t t) const { return larger(smaller(time_.active(t), end_) - begin_, 0); }

  void load_initial_states() {
    for (auto& operand : operand_)
      load_state(h0_, begin_, end_, O_, operand - begin_ * ld_operand_, ld_operand_);
    if (C::kState > 1)
      load_state(c0_, begin_, end_, p_->H, state_[1] - begin_ * ld_state_, ld_state_);
  }

  // wx for the steps at times [low, high): the block's rows in order of time.
  void multiply_inputs(int64_t low, int64_t high) {
    int64_t rows = 0;
    for (int64_t t = low; t < high; ++t) {
      start_[t - low] = rows;
      rows += active(t);
    }
    start_[high - low] = block_rows_ = rows;
    const T* a = gathered_;
    int64_t lda = ld_x_;
    const bool whole = rows_ == p_->B && x_.strides.step == rows_ * x_.strides.row;
    if (!x_.offsets && (rows_ == 1 || high - low == 1 || whole)) {
      a = x_.row(low, begin_);
      lda = rows_ == 1 ? x_.strides.step : x_.strides.row;
    } else {
      for (int64_t t = low; t < high; ++t)
        for (int64_t r = 0; r < active(t); ++r)
          copy_row(gathered_ + (start_[t - low] + r) * ld_x_, x_.row(t, begin_ + r), p_->I);
    }
    panels_.run(w_->ih.count(), [&](int64_t begin, int64_t end, int) {
      product(w_->ih, begin, end, false, a, lda, rows, Sums<T>{wx_, true},
              [](int64_t, int64_t, int, const T*) {});
    });
  }

  void step(int64_t s, int64_t step_in_block) {
    const int64_t t = time_.time(s), n = active(t);
    const T* operand = operand_[s & 1];
    T* next = operand_[(s + 1) & 1];
    const int64_t wx_row = start_[step_in_block];
    panels_.run(w_->hh.count(), [&](int64_t begin, int64_t end, int part) {
      product(w_->hh, begin, end, s & 1, operand, ld_operand_, n,
              Sums<T>{sums_ + part * sums_size_, false},
              [&](int64_t p, int64_t r, int count, const T* rh) {
                finish(t, r, count, p, wx_row, rh, operand, next);
              });
    });
    if (p_->P) project(t, n, next);
    if (!h_n_) return;
    const int64_t still = s + 1 < p_->T ? active(time_.time(s + 1)) : 0;
    for (int64_t r = still; r < n; ++r)
      copy_row(h_n_ + (begin_ + r) * O_, next + r * ld_operand_, O_);
  }

  // The cell's maths for the rows [r, r + count) and the blocks of units of one panel.
  void finish(int64_t t, int64_t r, int count, int64_t p, int64_t wx_row, const T* rh,
              const T* operand, T* next) {
    constexpr int G = C::kWx;
    const Panels<T>& w = w_->hh;
    const int columns = w.columns(p);
    const T* wx = wx_ + p * block_rows_ * w.columns() * W + (wx_row + r) * columns * W;
    T* y = p_->P ? nullptr : y_.row(t, begin_ + r);
    T* kept = reserve_ ? reserve_ + (time_.first(t) + begin_ + r) * saved_ * p_->H : nullptr;
    for (int c = 0; c < columns; c += G) {
      const int64_t u = (p * w.blocks_per_panel() + c / G) * W;
      const int n = int(smaller(W, p_->H - u));
      for (int i = 0; i < count; ++i) {
        const int64_t tile = (i * columns + c) * W, state = (r + i) * ld_state_ + u;
        typename C::template In<V> in;
        for (int g = 0; g < G; ++g) {
          in.wx[g] = V::load(wx + tile + g * W);
          in.rh[g] = V::load(rh + tile + g * W);
        }
        if (C::kHoldsOutput) in.prev[0] = V::load(operand + (r + i) * ld_operand_ + u);
        for (int s = 1; s < C::kState; ++s) in.prev[s] = V::load(state_[s] + state);
        Arr<V, C::kState> out;
        Arr<V, C::kSaved> saved;
        C::forward(in, options_, out, saved);
        for (int s = 1; s < C::kState; ++s) out[s].store(state_[s] + state);
        if (p_->P) {
          out[0].store(unprojected_ + state);
        } else {
          out[0].store(next + (r + i) * ld_operand_ + u);
          out[0].store(y + i * y_.strides.row + u, n);
        }
        if (kept) save(kept + i * saved_ * p_->H + u, n, saved, out[0]);
      }
    }
  }

  void save(T* to, int n, const Arr<V, C::kSaved>& saved, V output) {
    for (int i = 0; i < C::kSaved; ++i) saved[i].store(to + i * p_->H, n);
    if (p_->P) output.store(to + C::kSaved * p_->H, n);
  }

  // LSTM with projection: h = W_hr m, m the unprojected output.
  void project(int64_t t, int64_t rows, T* next) {
    const Panels<T>& w = w_->hr;
    product(w, 0, w.count(), false, unprojected_, ld_state_, rows, Sums<T>{sums_, false},
            [&](int64_t p, int64_t r, int count, const T* h) {
              const int64_t u = p * kMaxColumns * W;
              const int64_t n = smaller(w.columns(p) * W, O_ - u);
              for (int i = 0; i < count; ++i, h += w.columns(p) * W) {
                copy_row(next + (r + i) * ld_operand_ + u, h, n);
                copy_row(y_.row(t, begin_ + r + i) + u, h, n);
              }
            });
  }

  const Problem* p_;
  const ForwardWeights<C, T>* w_;
  PanelTeam panels_;
  int direction_;
  int64_t begin_, end_, rows_, O_, saved_, block_steps_, block_rows_, sums_size_;
  int64_t ld_operand_, ld_state_, ld_x_;
  T *operand_[2], *state_[C::kState], *unprojected_, *gathered_, *wx_, *sums_;
  int64_t* start_;
  Timeline time_;
  View<const T> x_;
  View<T> y_;
  T *h_n_, *c_n_, *reserve_;
  const T *h0_, *c0_;
  Options options_;
};

constexpr int kMaxGroups = kMaxThreads;  // of rows, in one direction

// Waking and joining threads costs some microseconds: small problems stay on one.
inline int team_size(const Problem& p) {
  const double products = double(p.T) * double(p.B) * double(p.H) * double(p.I + p.H);
  if (products * p.directions < 1e6) return 1;
  return int(smaller(p.threads, kMaxThreads));
}

// What threads share is directions and rows; of a single row they share the panels of every
// product, which takes a join at each step, so the weights must be worth it.
inline int panel_parts(const Problem& p, int gates) {
  const int64_t bytes = gates * p.H * (p.P ? p.P : p.H) * (p.dtype == Dtype::kFloat64 ? 8 : 4);
  return p.directions == 1 && p.B == 1 && bytes >= (1 << 20) ? team_size(p) : 1;
}

// Groups of rows in one direction.
inline int group_count(const Problem& p) {
  const int64_t wanted = (team_size(p) + p.directions - 1) / p.directions;
  return int(larger(1, smaller(wanted, p.B)));
}

template <class C, class T>
struct ForwardPass {
  ForwardWeights<C, T> weights[2];
  ForwardChain<C, T> chains[2 * kMaxGroups];
  int chain_count = 0;

  explicit ForwardPass(const Problem& p, Arena& packed, Arena& workspace) {
    const int groups = group_count(p);
    const int64_t most_rows = larger((p.B + groups - 1) / groups, 1);
    const int64_t block_steps = smaller(larger(kForwardBlockRows / most_rows, 1), p.T);
    for (int d = 0; d < p.directions; ++d) {
      weights[d].lay_out(p, packed);
      for (int g = 0; g < groups; ++g)
        chains[chain_count++].lay_out(p, d, p.B * g / groups, p.B * (g + 1) / groups, block_steps,
                                      panel_parts(p, C::kRh), weights[d], workspace);
    }
  }
};

template <class C, class T>
void sequence_forward_sizes(const Problem& p, Sizes& sizes) {
  Arena packed(nullptr), workspace(nullptr);
  ForwardPass<C, T> pass(p, packed, workspace);
  sizes.packed = packed.bytes();
  sizes.workspace = workspace.bytes();
  sizes.saved = C::kSaved + (p.P ? 1 : 0);
}

template <class C, class T>
void sequence_forward(const Problem& p, const ForwardBuffers& b) {
  Arena packed(b.packed), workspace(b.workspace);
  ForwardPass<C, T> pass(p, packed, workspace);
  Team team(team_size(p));
  if (b.repack) {
    const int64_t panels = pass.weights[0].panel_count();
    team.run(panels * p.directions, [&](int64_t i, int) {
      pass.weights[i / panels].pack_panel(i % panels, b.weights[i / panels]);
    });
  }
  for (int i = 0; i < pass.chain_count; ++i) pass.chains[i].bind(b);
  if (p.B == 0) return;
  if (panel_parts(p, C::kRh) > 1 && team.size() > 1) pass.chains[0].share(&team);
  team.run_chains(pass.chain_count, pass.chains[0].block_count(),
                  [&](int64_t chain, int64_t block) { pass.chains[chain].run_block(block); });
}

}  // namespace fastrnn::FASTRNN_ISA
