// The cell's maths of one step of a forward pass: from the halves of the pre-activations to the
// states, the output, and what is kept for the backward pass.
#pragma once

#include "operand.h"
#include "rows.h"

namespace fastrnn::FASTRNN_ISA {

template <class C, class N>
struct CellStep {
  using S = typename N::Storage;
  using T = typename N::Value;
  using V = Vec<T>;
  static constexpr int W = V::kWidth;
  // Whether the two parts of the maths are done one after the other for some vectors together, see
  // contract.h: for the rows of a tile, of a single row for these many panels.
  static constexpr bool kInParts = C::kHeld > 0;
  static constexpr int kPanelsTogether = 8;
  static_assert(!kInParts || C::kWx > 1, "a cell with one gate does all in gates(), kHeld = 0");

  const Problem* p;
  Options options;
  const Panels<typename N::Recurrent>* panels;
  // The input halves of a block of steps, [panels, block_rows, columns, W]; the step's rows begin
  // at first_row.
  const T* wx;
  int64_t block_rows, first_row;
  const Operand<N>* operand;
  Operand<N>*next, *unprojected;
  T* const* state;  // [kState]: of state s >= 1 [rows, ld_state]
  int64_t ld_state;
  const View<S>* y;
  int64_t t, first_sequence;  // of y
  T* kept;                    // [rows, saved, H]; null: nothing is kept
  int64_t saved;

  // Rows [r, r + count) of panel i, whose recurrent halves are rh.
  void finish_tile(int64_t i, int64_t r, int count, const T* rh) const {
    if (!kInParts && count == 1)
      finish_rows(i, r, 1, rh);  // a loop less: up to a tenth of a small step
    else
      finish_rows(i, r, count, rh);
  }

  // A single row and the panels [begin, end), of one block of units each; rh is of panel 0.
  void finish_panels(int64_t begin, int64_t end, const T* rh) const {
    S* to;
    y->rows(t, first_sequence, 1, &to);
    finish<kPanelsTogether>(int(end - begin), [&](int j) -> Place {
      const int64_t i = begin + j;
      return {0, panels->unit(i, 0), input_sums(i, 0), rh + i * panels->columns() * W, to};
    });
  }

 private:
  // A vector of units of one row, the halves of its pre-activations and where the row's output
  // goes.
  struct Place {
    int64_t row, u;
    const T *wx, *rh;
    S* y;
  };

  // Where the values that are kept of a vector go, and how many of its lanes are units.
  struct Save {
    T* to;
    int64_t H;
    int lanes;
    FASTRNN_HD void operator()(int slot, V value) const {
      if (to) value.store(to + slot * H, lanes);
    }
  };

  // What the first part leaves for the second one.
  struct Between {
    Arr<V, C::kState> next;
    Arr<V, C::kHeld> held;
  };

  const T* input_sums(int64_t i, int64_t r) const {
    return wx + (i * block_rows * panels->columns() + (first_row + r) * panels->columns(i)) * W;
  }

  FASTRNN_HD void finish_rows(int64_t i, int64_t r, int count, const T* rh) const {
    const int columns = panels->columns(i);
    S* to[kMaxTileRows];
    y->rows(t, first_sequence + r, count, to);
    const T* in = input_sums(i, r);
    for (int c = 0; c < columns; c += C::kWx) {
      const int64_t u = panels->unit(i, c);
      finish<kMaxTileRows>(count, [&](int j) -> Place {
        const int64_t at = (j * columns + c) * W;
        return {r + j, u, in + at, rh + at, to[j]};
      });
    }
  }

  // The first part of the maths for each of `count` vectors, and then the second one; both at once
  // where a cell holds nothing between them.
  template <int kMost, class At>
  FASTRNN_HD void finish(int count, const At& place) const {
    Between between[kInParts ? kMost : 1];
    for (int j = 0; j < count; ++j) {
      const Place at = place(j);
      gates(at, between[kInParts ? j : 0]);
      if (!kInParts) output(at, between[0]);
    }
    for (int j = 0; kInParts && j < count; ++j) output(place(j), between[j]);
  }

  FASTRNN_HD void gates(const Place& at, Between& to) const {
    typename C::template In<V> in;
    for (int g = 0; g < C::kWx; ++g) {
      in.wx[g] = V::load(at.wx + g * W);
      in.rh[g] = V::load(at.rh + g * W);
    }
    in.prev = before(at);
    C::gates(in, options, to.next, to.held, save(at));
  }

  FASTRNN_HD void output(const Place& at, Between& of) const {
    const Save keep = save(at);
    C::output(before(at), of.held, of.next, keep);
    for (int s = 1; s < C::kState; ++s) of.next[s].store(carried_state(s, at));
    if (p->P) {
      unprojected->store(at.row, at.u, of.next[0]);
      keep(C::kSaved, of.next[0]);
    } else {
      next->store(at.row, at.u, of.next[0]);
      store_value(at.y + at.u, of.next[0], keep.lanes);
    }
  }

  FASTRNN_HD Arr<V, C::kState> before(const Place& at) const {
    Arr<V, C::kState> prev;
    if (C::kHoldsOutput) prev[0] = operand->load(at.row, at.u);
    for (int s = 1; s < C::kState; ++s) prev[s] = V::load(carried_state(s, at));
    return prev;
  }

  FASTRNN_HD Save save(const Place& at) const {
    const int64_t H = p->H;
    return {kept ? kept + at.row * saved * H + at.u : nullptr, H, int(smaller(W, H - at.u))};
  }

  FASTRNN_HD T* carried_state(int s, const Place& at) const {
    return state[s] + at.row * ld_state + at.u;
  }
};

}  // namespace fastrnn::FASTRNN_ISA
