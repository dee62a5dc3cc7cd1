// The forward pass of one layer: input products for a block of steps, then the recurrent steps.
#pragma once

#include "cell_step.h"
#include "operand.h"
#include "product.h"
#include "threads.h"
#include "unpacked.h"

namespace fastrnn::FASTRNN_ISA {

// The weights of one direction as the forward pass reads them.
template <class C, class N>
struct ForwardWeights {
  PackedMatrix<N> ih, hr;
  PackedMatrix<N, typename N::Recurrent> hh;

  void lay_out(const Problem& p, Arena& arena) {
    ih.lay_out(p.I, p.H, C::kWx, true, arena);
    hh.lay_out(p.P ? p.P : p.H, p.H, C::kRh, true, arena);
    hr.lay_out(p.H, p.P, 1, p.P > 0, arena);
  }

  int64_t panel_count() const { return ih.panels.count() + hh.panels.count() + hr.panels.count(); }

  void pack_panel(int64_t i, const Weights& from) const {
    if (i < ih.panels.count()) return ih.pack_panel(i, from.w_ih, from.b_ih, from.scale_ih);
    i -= ih.panels.count();
    if (i < hh.panels.count()) return hh.pack_panel(i, from.w_hh, from.b_hh, from.scale_hh);
    hr.pack_panel(i - hh.panels.count(), from.w_hr, nullptr, from.scale_hr);
  }
};

// Values kept of a row and unit for the backward pass; with projection also the unprojected output.
template <class C>
int64_t saved_values(const Problem& p) {
  return C::kSaved + (p.P ? 1 : 0);
}

// With checkpoint_every = K: the states before the steps 0, K, 2K, ... in a direction's own order,
// [ceil(T/K),B,kState-1,H]. Outputs are not among them, being kept as y.
template <class C>
int64_t checkpoint_size(const Problem& p) {
  const int64_t count = (p.T - 1) / p.checkpoint_every + 1;
  return count * p.B * (C::kState - 1) * p.H;
}

// Rows of the input product that are made at once: enough to reuse each panel of W_ih, few enough
// for the result to stay in L2 until the steps have read it.
constexpr int64_t kForwardBlockRows = 128;

constexpr int64_t kFewPanels = 2;  // as many as pair_product() multiplies a single row with

// The rows [begin, end) of one direction, from the first step to the last. Chains share nothing
// that they write, so they run on any thread in any order.
template <class C, class N>
class ForwardChain {
 public:
  using S = typename N::Storage;
  using T = typename N::Value;
  using F = typename N::Factors;
  using R = typename N::Recurrent;
  using V = Vec<T>;
  static constexpr int W = V::kWidth;
  static_assert(C::kWx == C::kRh, "input and recurrent product share their panels' geometry");

  // `parts`: how many threads share the panels of each product, if share() gives a team.
  // `uses_rarely`: the weights may come unpacked, see multiply(). Not inlined, as other functions
  // with several callers that cost little are not: all is compiled for every cell and format.
  [[gnu::noinline]] void lay_out(const Problem& p, int direction, int64_t begin, int64_t end,
                                 int64_t block_steps, int parts, bool uses_rarely,
                                 const ForwardWeights<C, N>& weights, Arena& arena) {
    p_ = &p, w_ = &weights, direction_ = direction, begin_ = begin, end_ = end;
    panels_ = {nullptr, parts};
    O_ = p.P ? p.P : p.H;
    rows_ = end - begin;
    block_steps_ = block_steps;
    ld_state_ = padded<T>(p.H);
    for (auto& operand : operand_) operand.lay_out(rows_, O_, arena);
    for (int s = 1; s < C::kState; ++s) state_[s] = arena.take<T>(rows_ * ld_state_);
    unprojected_.lay_out(p.P ? rows_ : 0, p.H, arena);
    const int64_t block_rows = block_steps_ * rows_;
    gathered_.lay_out(block_rows, p.I, arena);
    wx_ = arena.take<typename F::Sum>(Sums<F>::size(weights.ih.panels, block_rows, true));
    sums_ = arena.take<typename F::Sum>(
        larger(larger(Sums<R>::size(weights.hh.panels, rows_, false, parts),
                      Sums<R>::size(weights.hh.panels, 1, true)),
               p.P ? Sums<F>::size(weights.hr.panels, rows_, false, parts) : 0));
    start_ = arena.take<int64_t>(block_steps_ + 1);
    const auto few = [](const auto& m, int sharing) {
      return smaller(kFewPanels, (m.panels.count() + sharing - 1) / sharing) * m.panels.stride();
    };
    few_size_ =
        larger(larger(few(weights.ih, parts), few(weights.hh, parts)), few(weights.hr, parts));
    if (!uses_rarely || reads_unpacked(block_rows)) few_size_ = 0;
    few_ = arena.take<typename F::Sum>(few_size_ * parts);
  }

  void bind(const ForwardBuffers& b) {
    time_ = {p_->T, p_->B, b.offsets, direction_ == 1 || p_->reverse};
    x_ = {static_cast<const S*>(b.x), b.offsets, b.table, b.x_strides};
    y_ = {static_cast<S*>(b.y) + direction_ * O_, b.offsets, b.table, b.y_strides};
    h_n_ = static_cast<S*>(b.h_n) + direction_ * p_->B * O_;
    c_n_ = C::kState > 1 ? static_cast<S*>(b.c_n) + direction_ * p_->B * p_->H : nullptr;
    from_ = b.weights[direction_];
    h0_ = b.h0 ? static_cast<const S*>(b.h0) + direction_ * p_->B * O_ : nullptr;
    c0_ = b.c0 ? static_cast<const S*>(b.c0) + direction_ * p_->B * p_->H : nullptr;
    const int64_t all_rows = b.offsets ? b.offsets[p_->T] : p_->T * p_->B;
    saved_ = saved_values<C>(*p_);
    reserve_ = checkpoints_ = nullptr;
    if (p_->training && p_->checkpoint_every)
      checkpoints_ = static_cast<T*>(b.reserve) + direction_ * checkpoint_size<C>(*p_);
    else if (p_->training && saved_)
      reserve_ = static_cast<T*>(b.reserve) + direction_ * all_rows * saved_ * p_->H;
    options_.relu = p_->activation == Activation::kRelu;
  }

  // For a stream, in place of bind() and run_block(): step s, by itself, of a sequence without end.
  void step_alone(const S* x, int64_t x_row, S* y, int64_t y_row, int64_t s) {
    const TileScope scope;
    x_ = {x, nullptr, {}, {0, x_row}};
    y_ = {y, nullptr, {}, {0, y_row}};
    multiply_inputs(0, 1);
    step(s, 0);
  }

  void set_state(const S* h, const T* c) {
    time_ = {INT64_MAX, p_->B, nullptr, false};
    reserve_ = checkpoints_ = nullptr, h_n_ = nullptr;
    options_.relu = p_->activation == Activation::kRelu;
    load_output(h);
    load_carried(c);
  }

  // After `steps` steps.
  void get_state(S* h, T* c, int64_t steps) const {
    for (int64_t r = 0; r < rows_; ++r) {
      operand_[steps & 1].get(r, h + r * O_);
      if (C::kState > 1) copy_row(c + r * p_->H, state_[C::kState - 1] + r * ld_state_, p_->H);
    }
  }

  void share(Team* team) { panels_.team = team; }

  int64_t block_count() const { return (p_->T + block_steps_ - 1) / block_steps_; }

  void run_block(int64_t block) {
    // With a team its caller asks, between panels, whether to stop: handlers of signals run then.
    const TileScope scope(!panels_.team);
    if (block == 0) {
      load_output(h0_);
      load_carried(c0_);
    }
    const int64_t s0 = block * block_steps_, s1 = smaller(s0 + block_steps_, p_->T);
    const int64_t low = smaller(time_.time(s0), time_.time(s1 - 1));
    multiply_inputs(low, low + s1 - s0);
    for (int64_t s = s0; s < s1; ++s) {
      if (checkpoints_ && s % p_->checkpoint_every == 0) keep_checkpoint(s / p_->checkpoint_every);
      step(s, time_.time(s) - low);
    }
    if (s1 == p_->T && C::kState > 1)
      for (int64_t r = 0; r < rows_; ++r)
        convert_row(c_n_ + (begin_ + r) * p_->H, state_[1] + r * ld_state_, p_->H);
  }

 private:
  int64_t active(int64_t t) const { return larger(smaller(time_.active(t), end_) - begin_, 0); }

  void load_output(const S* h) {
    for (auto& operand : operand_)
      for (int64_t r = 0; r < rows_; ++r) operand.set(r, h ? h + (begin_ + r) * O_ : nullptr);
  }

  // Lanes past H, which are computed too, are 0.
  template <class From>
  void load_carried(const From* c) {
    if (C::kState == 1) return;
    fill_row(state_[1], T(0), rows_ * ld_state_);
    load_state(c, begin_, end_, p_->H, state_[1] - begin_ * ld_state_, ld_state_);
  }

  void keep_checkpoint(int64_t i) {
    for (int s = 1; s < C::kState; ++s)
      for (int64_t r = 0; r < rows_; ++r)
        copy_row(checkpoints_ + ((i * p_->B + begin_ + r) * (C::kState - 1) + s - 1) * p_->H,
                 state_[s] + r * ld_state_, p_->H);
  }

  // wx for the steps at times [low, high): the block's rows in order of time.
  void multiply_inputs(int64_t low, int64_t high) {
    int64_t rows = 0;
    for (int64_t t = low; t < high; ++t) {
      start_[t - low] = rows;
      rows += active(t);
    }
    start_[high - low] = block_rows_ = rows;
    const bool whole = rows_ == p_->B && x_.strides.step == rows_ * x_.strides.row;
    const bool regular = !x_.offsets && (rows_ == 1 || high - low == 1 || whole);
    if constexpr (N::kDirect) {
      if (regular && p_->I % F::kGroup == 0) {
        const int64_t lda = rows_ == 1 ? x_.strides.step : x_.strides.row;
        return multiply_input_rows(x_.row(low, begin_), lda, rows);
      }
    }
    panels_.run(high - low, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = low + begin; t < low + end; ++t)
        for (int64_t r = 0; r < active(t); ++r)
          gathered_.set(start_[t - low] + r, x_.row(t, begin_ + r));
      gathered_.prepare(start_[begin], start_[end]);
    });
    multiply_input_rows(gathered_.factors(0), gathered_.ld(), rows);
  }

  void multiply_input_rows(const typename F::Left* a, int64_t lda, int64_t rows) {
    const PackedMatrix<N>& w = w_->ih;
    panels_.run(w.panels.count(), [&](int64_t begin, int64_t end, int part) {
      const auto done = [&](int64_t p, int64_t r, int count, typename F::Sum* tile) {
        w.values(p, count, tile, gathered_.scales() + r);
      };
      multiply(w, {from_.w_ih, from_.b_ih, begin, end, part}, false, a, lda, rows,
               Sums<F>{wx_, true}, done);
    });
  }

  // What multiply() takes of a matrix: the panels [begin, end), for one part of the team.
  struct Share {
    const void *w, *bias;
    int64_t begin, end;
    int part;
  };

  static bool reads_unpacked(int64_t rows) { return kReadsUnpacked<N> && rows <= kMaxUnpackedRows; }

  // product() with packed weights. Or else few rows read the weights as they lie; for more of them
  // a few panels at a time are packed just before, which are in L2 then unless k is in the
  // thousands, and all else that is read are the weights, once.
  template <class M>
  void multiply(const PackedMatrix<N, M>& m, const Share& share, bool descending,
                const typename M::Left* a, int64_t lda, int64_t rows, Sums<M> sums,
                const Receiver<typename M::Sum>& done) const {
    const Sums<M> own = share.part ? sums.of_part(share.part, sums.kept(m.panels, rows)) : sums;
    if (m.panels.data)
      return product(m.panels, share.begin, share.end, descending, a, lda, rows, own, done);
    if constexpr (kReadsUnpacked<N>)
      if (reads_unpacked(rows))
        return unpacked_product<T>(m.panels, share.begin, share.end, static_cast<const T*>(share.w),
                                   static_cast<const T*>(share.bias), a, lda, int(rows),
                                   sums.of_part(share.part, sums.keep), done);
    PackedMatrix<N, M> few = m;
    few.panels.data = few_ + share.part * few_size_;
    for (int64_t p = share.begin; p < share.end; p += kFewPanels) {
      const int64_t end = smaller(p + kFewPanels, share.end);
      few.panels.first = p;
      for (int64_t i = p; i < end; ++i) few.pack_panel(i, share.w, share.bias, nullptr);
      product(few.panels, p, end, false, a, lda, rows, own, done);
    }
  }

  void step(int64_t s, int64_t step_in_block) {
    const int64_t t = time_.time(s), n = active(t);
    Operand<N>& next = operand_[(s + 1) & 1];
    const int64_t wx_row = start_[step_in_block];
    operand_[s & 1].prepare(0, n);
    panels_.run(w_->hh.panels.count(), [&](int64_t begin, int64_t end, int part) {
      advance(s, n, wx_row, begin, end, part);
    });
    if (p_->P) project(t, n, next);
    if (!h_n_) return;
    const int64_t still = s + 1 < p_->T ? active(time_.time(s + 1)) : 0;
    for (int64_t r = still; r < n; ++r) next.get(r, h_n_ + (begin_ + r) * O_);
  }

  // Step s for n rows and the panels [begin, end). Not a part of step(): its call would be passed
  // addresses of all that it reads through memory, which takes as long as a small product.
  void advance(int64_t s, int64_t n, int64_t wx_row, int64_t begin, int64_t end, int part) {
    const Operand<N>& operand = operand_[s & 1];
    const CellStep<C, N> maths = cell_step(s, wx_row);
    const auto multiply_panels = [&](int64_t from, int64_t to, bool keep, const auto& done) {
      multiply(w_->hh, {from_.w_hh, from_.b_hh, from, to, part}, s & 1, operand.factors(0),
               operand.ld(), n, Sums<R>{sums_, keep}, done);
    };
    if (!maths.kInParts || n != 1) {
      const auto done = [&](int64_t p, int64_t r, int count, typename F::Sum* tile) {
        maths.finish_tile(p, r, count, w_->hh.values(p, count, tile, operand.scales() + r));
      };
      return multiply_panels(begin, end, false, done);
    }
    constexpr int64_t kTogether = maths.kPanelsTogether;
    const int64_t groups = (end - begin + kTogether - 1) / kTogether;
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t from = begin + (s & 1 ? groups - 1 - i : i) * kTogether;
      const int64_t to = smaller(from + kTogether, end);
      multiply_panels(from, to, true, [&](int64_t p, int64_t, int, typename F::Sum* tile) {
        w_->hh.values(p, 1, tile, operand.scales());
      });
      maths.finish_panels(from, to, reinterpret_cast<const T*>(sums_));
    }
  }

  CellStep<C, N> cell_step(int64_t s, int64_t wx_row) {
    const int64_t t = time_.time(s);
    CellStep<C, N> m;
    m.p = p_, m.options = options_, m.panels = &w_->hh.panels;
    m.wx = reinterpret_cast<const T*>(wx_), m.block_rows = block_rows_, m.first_row = wx_row;
    m.operand = &operand_[s & 1], m.next = &operand_[(s + 1) & 1], m.unprojected = &unprojected_;
    m.state = state_, m.ld_state = ld_state_;
    m.y = &y_, m.t = t, m.first_sequence = begin_;
    m.kept = reserve_ ? reserve_ + (time_.first(t) + begin_) * saved_ * p_->H : nullptr;
    m.saved = saved_;
    return m;
  }

  // LSTM with projection: h = W_hr m, m the unprojected output.
  void project(int64_t t, int64_t rows, Operand<N>& next) {
    const Panels<F>& w = w_->hr.panels;
    unprojected_.prepare(0, rows);
    const auto done = [&](int64_t p, int64_t r, int count, typename F::Sum* tile) {
      const T* h = w_->hr.values(p, count, tile, unprojected_.scales() + r);
      for (int i = 0; i < count; ++i)
        for (int c = 0; c < w.columns(p); ++c, h += W) {
          const int64_t u = w.unit(p, c);
          const V v = V::load(h);
          next.store(r + i, u, v);
          store_value(y_.row(t, begin_ + r + i) + u, v, int(smaller(W, O_ - u)));
        }
    };
    panels_.run(w.count(), [&](int64_t begin, int64_t end, int part) {
      multiply(w_->hr, {from_.w_hr, nullptr, begin, end, part}, false, unprojected_.factors(0),
               unprojected_.ld(), rows, Sums<F>{sums_, false}, done);
    });
  }

  const Problem* p_;
  const ForwardWeights<C, N>* w_;
  PanelTeam panels_;
  int direction_;
  int64_t begin_, end_, rows_, O_, saved_, block_steps_, block_rows_, ld_state_;
  Operand<N> operand_[2], unprojected_, gathered_;
  T* state_[C::kState];
  typename F::Sum *wx_, *sums_, *few_;
  int64_t few_size_;
  Weights from_;
  int64_t* start_;
  Timeline time_;
  View<const S> x_;
  View<S> y_;
  S *h_n_, *c_n_;
  T *reserve_, *checkpoints_;
  const S *h0_, *c0_;
  Options options_;
};

constexpr int kMaxGroups = kMaxThreads;  // of rows, in one direction

// Waking and joining threads costs some microseconds: small problems stay on one.
inline int team_size(const Problem& p) {
  const double products = double(p.T) * double(p.B) * double(p.H) * double(p.I + p.H);
  if (products * p.directions < 1e6) return 1;
  return int(smaller(p.threads, kMaxThreads));
}

// What threads share is directions and rows. Where each would have few rows for weights that L2
// does not hold, or where there is a single row, they share the panels of every product: each reads
// its part of the weights for all rows. That takes joins at each step, so they must be worth it,
// and the product with the fewest panels, W_hh's backwards, must be shared out about evenly.
template <class N>
int panel_parts(const Problem& p, int gates) {
  constexpr int64_t kBytes = sizeof(typename N::Recurrent::Right), kFewRows = 8;
  const int64_t O = p.P ? p.P : p.H, bytes = gates * p.H * O * kBytes, parts = team_size(p);
  const int64_t panels = Panels<typename N::Recurrent>{nullptr, 0, O, 1}.count();
  const bool even = 4 * round_up(panels, parts) <= 5 * panels;
  const bool few = p.B <= kFewRows * parts && bytes >= (2 << 20) && even;
  const bool single = p.B == 1 && bytes >= (1 << 20);
  return p.directions == 1 && (few || single) ? int(parts) : 1;
}

constexpr int64_t kFewSteps = 4;

// Whether a call uses each panel once, so that packed ones need not be kept: groups of rows on
// several threads would each pack all of them. Or so few rows use it in so few steps that all of
// them read the weights as they lie in less time than it takes to find out whether those that were
// packed before have changed.
template <class N>
bool uses_rarely(const Problem& p, int gates) {
  const bool few = kReadsUnpacked<N> && p.T <= kFewSteps && p.T * p.B <= kMaxUnpackedRows;
  const bool alone = team_size(p) == 1 || panel_parts<N>(p, gates) > 1;
  return (p.T == 1 || few) && !N::kQuantized && alone;
}

// Groups of rows in one direction, where its panels are not shared.
inline int group_count(const Problem& p) {
  const int64_t wanted = (team_size(p) + p.directions - 1) / p.directions;
  return int(larger(1, smaller(wanted, p.B)));
}

template <class C, class N>
struct ForwardPass {
  ForwardWeights<C, N> weights[2];
  UpTo<ForwardChain<C, N>, 2 * kMaxGroups> chains;

  explicit ForwardPass(const Problem& p, Arena& packed, Arena& workspace) {
    const int parts = panel_parts<N>(p, C::kRh), groups = parts > 1 ? 1 : group_count(p);
    const int64_t most_rows = larger((p.B + groups - 1) / groups, 1);
    const int64_t block_steps = smaller(larger(kForwardBlockRows / most_rows, 1), p.T);
    for (int d = 0; d < p.directions; ++d) {
      weights[d].lay_out(p, packed);
      for (int g = 0; g < groups; ++g)
        chains.add().lay_out(p, d, p.B * g / groups, p.B * (g + 1) / groups, block_steps, parts,
                             uses_rarely<N>(p, C::kRh), weights[d], workspace);
    }
  }
};

template <class C, class N>
void sequence_forward_sizes(const Problem& p, Sizes& sizes) {
  Arena packed(nullptr), workspace(nullptr);
  ForwardPass<C, N> pass(p, packed, workspace);
  sizes.packed = packed.bytes();
  sizes.workspace = workspace.bytes();
  sizes.packs_as_used = uses_rarely<N>(p, C::kRh);
  sizes.saved = p.checkpoint_every ? C::kState - 1 : saved_values<C>(p);
}

template <class C, class N>
bool sequence_forward(const Problem& p, const ForwardBuffers& b) {
  Arena packed(b.packed), workspace(b.workspace);
  ForwardPass<C, N> pass(p, packed, workspace);
  Team team(team_size(p), b.interrupt);
  if (b.repack && b.packed) {
    const int64_t panels = pass.weights[0].panel_count();
    team.run(panels * p.directions, [&](int64_t i, int) {
      pass.weights[i / panels].pack_panel(i % panels, b.weights[i / panels]);
    });
  }
  for (int i = 0; i < pass.chains.count(); ++i) pass.chains[i].bind(b);
  if (p.B == 0 || team.asked_to_stop()) return !team.stopped();
  if (panel_parts<N>(p, C::kRh) > 1 && team.size() > 1) pass.chains[0].share(&team);
  team.run_chains(pass.chains.count(), pass.chains[0].block_count(),
                  [&](int64_t chain, int64_t block) { pass.chains[chain].run_block(block); });
  return !team.stopped();
}

}  // namespace fastrnn::FASTRNN_ISA
