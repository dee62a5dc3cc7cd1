// The backward pass of one layer. In phase j the recurrent chains run through block j while the
// products of block j - 1 are made: one join of the threads per block of steps. Of few rows with
// large weights the threads share the chain itself, step by step, and then the products.
#pragma once

#include "backward_chain.h"
#include "forward.h"
#include "threads.h"
#include "weight_gradients.h"

namespace fastrnn::FASTRNN_ISA {

template <class C, class N>
struct BackwardPass {
  using S = typename N::Storage;
  using T = typename N::Value;
  const Problem& p;
  BackwardWeights<C, N> weights[2];
  ForwardWeights<C, N> forward[2];  // for replays
  BackwardRows<C, N> rows[2];
  UpTo<BackwardChain<C, N>, 2 * kMaxGroups> chains;
  GradientTickets<C, N> gradients[2];
  GradientScratch<N> scratch[kMaxThreads];
  bool shared_chain = false;
  T* lost[2];               // of the sums of biases, see sum_rows()
  WeightGradients sums[2];  // of reduced numbers: where the gradients are added up

  BackwardPass(const Problem& problem, Arena& arena) : p(problem) {
    const int parts = panel_parts<N>(p, C::kRh), groups = parts > 1 ? 1 : group_count(p);
    for (int d = 0; d < p.directions; ++d) {
      weights[d].lay_out(p, arena);
      if (replays<C>(p)) forward[d].lay_out(p, arena);
      rows[d].lay_out(p, d, arena);
      lost[d] = arena.take<T>(p.samples * 2 * C::kWx * p.H);
      if (N::kReduced)
        each_gradient(sums[d], sums[d],
                      [&](void*& to, void*&, int64_t n) { to = arena.take<T>(n); });
      for (int g = 0; g < groups; ++g)
        chains.add().lay_out(rows[d], weights[d], forward[d], p.B * g / groups,
                             p.B * (g + 1) / groups, parts, arena);
    }
    for (int i = 0; i < team_size(p); ++i) scratch[i].lay_out(weights[0].ih, arena);
  }

  // Calls f(a's, b's, elements) for every gradient of a direction's weights, of all samples.
  template <class A, class B, class Function>
  void each_gradient(A& a, B& b, const Function& f) const {
    const int64_t O = p.P ? p.P : p.H, G = p.samples * C::kWx * p.H;
    f(a.w_ih, b.w_ih, G * p.I), f(a.w_hh, b.w_hh, G * O);
    f(a.w_hr, b.w_hr, p.samples * p.P * p.H);
    f(a.b_ih, b.b_ih, G), f(a.b_hh, b.b_hh, G);
  }

  void bind(const BackwardBuffers& b) {
    for (int d = 0; d < p.directions; ++d) {
      rows[d].bind(b);
      weights[d].from = b.weights[d];
      WeightGradients to = b.gradients[d];
      if (N::kReduced)
        each_gradient(to, sums[d], [](void*& t, void* sum, int64_t) { t = t ? sum : nullptr; });
      gradients[d].bind(rows[d], weights[d], b, to, lost[d]);
    }
    for (int i = 0; i < chains.count(); ++i) chains[i].bind(b);
  }

  void pack(const BackwardBuffers& b, Team& team) const {
    const int64_t backward = weights[0].panel_count(b, p.T, p.P);
    const int64_t panels = backward + (replays<C>(p) ? forward[0].panel_count() : 0);
    team.run(panels * p.directions, [&](int64_t i, int) {
      const int64_t d = i / panels, panel = i % panels;
      if (panel < backward)
        weights[d].pack_panel(panel, b, p.T, p.P);
      else
        forward[d].pack_panel(panel - backward, b.weights[d]);
    });
  }

  // Reduced numbers: the finished sums, rounded once.
  void round_gradients(const BackwardBuffers& b) const {
    for (int d = 0; d < p.directions; ++d)
      each_gradient(b.gradients[d], sums[d], [](void* to, const void* sum, int64_t n) {
        if (to) convert_row(static_cast<S*>(to), static_cast<const T*>(sum), n);
      });
  }

  // Both directions work on the middle block of an odd number in the same phase; one ticket then
  // makes both shares of some rows of dx.
  void run_phase(int64_t j, Team& team) {
    const int64_t blocks = rows[0].block_count(), done = j - 1;
    if (shared_chain && j < blocks) chains[0].run_block(j);
    const int64_t recurrent = j < blocks && !shared_chain ? chains.count() : 0;
    const int64_t k[2] = {done < 0 ? 0 : rows[0].block_at(done),
                          done < 0 || p.directions == 1 ? 0 : rows[1].block_at(done)};
    const bool both = p.directions == 2, shared = both && k[0] == k[1];
    const bool add = both && 2 * done > blocks - 1;
    // Tickets in this order: chains, weights of each direction, inputs of each direction.
    int64_t end[5] = {recurrent, recurrent, recurrent, recurrent, recurrent};
    if (done >= 0) {
      end[1] = end[0] + gradients[0].weight_tickets();
      end[2] = end[1] + (both ? gradients[1].weight_tickets() : 0);
      end[3] = end[2] + gradients[0].input_tickets(k[0]);
      end[4] = end[3] + (both && !shared ? gradients[1].input_tickets(k[1]) : 0);
    }
    team.run(end[4], [&](int64_t i, int slot) {
      const GradientScratch<N>& s = scratch[slot];
      if (i < end[0]) {
        chains[i].run_block(j);
      } else if (i < end[1]) {
        gradients[0].weights(i - end[0], k[0], done == 0, s);
      } else if (i < end[2]) {
        gradients[1].weights(i - end[1], k[1], done == 0, s);
      } else if (i < end[3]) {
        gradients[0].inputs(i - end[2], k[0], add, s);
        if (shared) gradients[1].inputs(i - end[2], k[1], true, s);
      } else {
        gradients[1].inputs(i - end[3], k[1], add, s);
      }
    });
  }

  void clear_gradients(const BackwardBuffers& b) const {
    for (int d = 0; d < p.directions; ++d)
      each_gradient(b.gradients[d], b.gradients[d], [](void* to, void*, int64_t n) {
        if (to) fill_row(static_cast<S*>(to), S{}, n);
      });
  }
};

template <class C, class N>
void sequence_backward_sizes(const Problem& p, Sizes& sizes) {
  Arena arena(nullptr);
  BackwardPass<C, N> pass(p, arena);
  sizes.backward_workspace = arena.bytes();
}

template <class C, class N>
bool sequence_backward(const Problem& p, const BackwardBuffers& b) {
  Arena arena(b.workspace);
  BackwardPass<C, N> pass(p, arena);
  if (p.B == 0) {
    pass.clear_gradients(b);
    return true;
  }
  Team team(team_size(p), b.interrupt);
  pass.bind(b);
  pass.pack(b, team);
  pass.shared_chain = panel_parts<N>(p, C::kRh) > 1 && team.size() > 1;
  if (pass.shared_chain) pass.chains[0].share(&team);
  for (int64_t j = 0; j <= pass.rows[0].block_count() && !team.asked_to_stop(); ++j)
    pass.run_phase(j, team);
  if (team.stopped()) return false;
  if (N::kReduced) pass.round_gradients(b);
  return true;
}

}  // namespace fastrnn::FASTRNN_ISA
