// Where rows are and what a cell does with a finished product: the same for every kernel.
#pragma once

#include <fastrnn/fastrnn.h>

#include "cells/list.h"
#include "formats.cuh"

namespace fastrnn::cuda {

// The order of steps and the sequences that are alive in each.
struct Timeline {
  const int64_t* offsets;  // [T+1], null: a dense batch
  int T, B;
  bool reverse;  // direction 0 runs backwards

  FASTRNN_DEVICE bool reversed(int d) const { return d == 1 || reverse; }
  FASTRNN_DEVICE int alive(int t) const {
    if (t < 0 || t >= T) return 0;
    return offsets ? static_cast<int>(offsets[t + 1] - offsets[t]) : B;
  }
  FASTRNN_DEVICE int time(int d, int step) const { return reversed(d) ? T - 1 - step : step; }
  FASTRNN_DEVICE int before(int d, int t) const { return reversed(d) ? t + 1 : t - 1; }
  FASTRNN_DEVICE int after(int d, int t) const { return reversed(d) ? t - 1 : t + 1; }
  FASTRNN_DEVICE int64_t rows() const { return offsets ? offsets[T] : static_cast<int64_t>(T) * B; }
  FASTRNN_DEVICE int64_t row(int t, int b) const {
    return offsets ? offsets[t] + b : static_cast<int64_t>(t) * B + b;
  }
  FASTRNN_DEVICE int64_t at(const Strides& strides, int t, int b) const {
    return offsets ? (offsets[t] + b) * strides.row : t * strides.step + b * strides.row;
  }
  // The time of the last element of a sequence.
  FASTRNN_DEVICE int last(int b) const {
    if (!offsets) return T - 1;
    int low = 0, high = T - 1;
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (alive(middle) > b)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }
  // The time of a sequence's first step in a direction.
  FASTRNN_DEVICE int first(int d, int b) const { return reversed(d) ? last(b) : 0; }
};

template <class S>
FASTRNN_DEVICE auto read(const S* p, int64_t i) {
  return p ? widen(p[i]) : decltype(widen(S{}))(0);
}

template <class C, class F>
struct ForwardCell {
  using Cell = C;
  using Format = F;
  using Storage = typename F::Storage;
  using Value = typename F::Value;

  Timeline time;
  FASTRNN_ISA::Options options;
  int H, O, D, saved;
  const Storage* wx[2];
  Strides wx_strides;
  const Storage *h0, *c0, *b_hh[2];
  Storage* y;
  Strides y_strides;
  Storage *h_n, *c_n;
  Value* reserve;
  Storage* full;  // [D,B,H] outputs before the projection; null: there is none

  FASTRNN_DEVICE Storage* output(int d, int t, int b) const {
    return y + time.at(y_strides, t, b) + d * O;
  }
  // What the product of a step reads, null: zeros.
  FASTRNN_DEVICE const Storage* operand(int d, int t, int b) const {
    if (b >= time.alive(t)) return nullptr;
    const int before = time.before(d, t);
    if (b < time.alive(before)) return output(d, before, b);
    return h0 ? h0 + (static_cast<int64_t>(d) * time.B + b) * O : nullptr;
  }
  FASTRNN_DEVICE Value bias(int d, int gate, int u) const {
    return read(b_hh[d], static_cast<int64_t>(gate) * H + u);
  }

  // `state` is the further state of this unit, carried from step to step. Returns the output.
  FASTRNN_DEVICE Storage finish(int d, int t, int b, int u, const Value (&rh)[C::kRh],
                                Value* state) const {
    typename C::template In<Value> in;
    const Storage* x = wx[d] + time.at(wx_strides, t, b) + u;
    for (int g = 0; g < C::kWx; ++g) in.wx[g] = widen(x[static_cast<int64_t>(g) * H]);
    for (int g = 0; g < C::kRh; ++g) in.rh[g] = rh[g];
    const int64_t unit = (static_cast<int64_t>(d) * time.B + b) * H + u;
    const bool begun = b < time.alive(time.before(d, t));
    if constexpr (C::kHoldsOutput)
      in.prev[0] = begun ? widen(output(d, time.before(d, t), b)[u]) : read(h0, unit);
    if constexpr (C::kState > 1) in.prev[1] = begun ? *state : read(c0, unit);

    FASTRNN_ISA::Arr<Value, C::kState> next;
    FASTRNN_ISA::Arr<Value, C::kSaved> kept;
    FASTRNN_ISA::cell_forward<C>(in, options, next, kept);

    const auto out = narrow<Storage>(next[0]);
    const bool ends = b >= time.alive(time.after(d, t));
    const int64_t keep = (d * time.rows() + time.row(t, b)) * saved * H + u;
    if (reserve)
      for (int i = 0; i < C::kSaved; ++i) reserve[keep + static_cast<int64_t>(i) * H] = kept[i];
    if constexpr (C::kState > 1) {
      *state = next[1];
      if (ends) c_n[unit] = narrow<Storage>(next[1]);
    }
    if (full) {
      full[unit] = out;
      if (reserve) reserve[keep + static_cast<int64_t>(C::kSaved) * H] = widen(out);
    } else {
      put(d, t, b, u, out);
    }
    return out;
  }
  // An output, to y and at the end of a sequence to h_n.
  FASTRNN_DEVICE void put(int d, int t, int b, int o, Storage out) const {
    output(d, t, b)[o] = out;
    if (b >= time.alive(time.after(d, t)))
      h_n[(static_cast<int64_t>(d) * time.B + b) * O + o] = out;
  }
};

template <class C, class F>
struct BackwardCell {
  using Cell = C;
  using Format = F;
  using Storage = typename F::Storage;
  using Value = typename F::Value;
  static constexpr int kFirst = C::kDrh[0];  // the recurrent gates' gradients begin here

  Timeline time;
  FASTRNN_ISA::Options options;
  int H, O, D, saved;
  const Storage *h0, *c0, *y;
  Strides y_strides;
  const Value* reserve;
  const Storage* dy;
  Strides dy_strides;
  const Storage *dh_n, *dc_n;
  Storage* dgates[2];
  Storage *dh0, *dc0;

  FASTRNN_DEVICE int64_t unit(int d, int b, int u) const {
    return (static_cast<int64_t>(d) * time.B + b) * H + u;
  }
  // Gradients of the recurrent pre-activations at (t, b), [G*H].
  FASTRNN_DEVICE const Storage* gates(int d, int t, int b) const {
    return dgates[d] + (time.row(t, b) * C::kD + kFirst) * H;
  }
  // What the product of step t reads: the gates of the step after it; null: zeros.
  FASTRNN_DEVICE const Storage* operand(int d, int t, int b) const {
    const int after = time.after(d, t);
    return b < time.alive(t) && b < time.alive(after) ? gates(d, after, b) : nullptr;
  }
  // The whole gradient of an output from `through`, what came through the product, and `direct`,
  // what came past it.
  FASTRNN_DEVICE Value total(int d, int t, int b, int o, Value through, Value direct) const {
    const bool goes_on = b < time.alive(time.after(d, t));
    const Value later =
        goes_on ? through + direct : read(dh_n, (static_cast<int64_t>(d) * time.B + b) * O + o);
    return later + (dy ? widen(dy[time.at(dy_strides, t, b) + d * O + o]) : Value(0));
  }

  // `direct`: the gradient of the previous output past the product, left for the step before;
  // `state`: that of the further state.
  FASTRNN_DEVICE void finish(int d, int t, int b, int u, Value dy_total, Value* direct,
                             Value* state) const {
    const int before = time.before(d, t);
    const bool begun = b < time.alive(before);
    const int64_t kept = (d * time.rows() + time.row(t, b)) * saved * H + u;
    FASTRNN_ISA::Arr<Value, C::kSaved> values;
    FASTRNN_ISA::Arr<Value, C::kState> previous, ds;
    FASTRNN_ISA::Arr<Value, C::kD> dd;
    for (int i = 0; i < C::kSaved; ++i) values[i] = reserve[kept + static_cast<int64_t>(i) * H];
    if constexpr (C::kHoldsOutput)
      previous[0] =
          begun ? widen(y[time.at(y_strides, before, b) + d * O + u]) : read(h0, unit(d, b, u));
    if constexpr (C::kState > 1) {
      constexpr int kSlot = C::kStateSlot[C::kState - 1];
      const int64_t row = d * time.rows() + (begun ? time.row(before, b) : 0);
      previous[1] = begun ? reserve[(row * saved + kSlot) * H + u] : read(c0, unit(d, b, u));
      ds[1] = b < time.alive(time.after(d, t)) ? *state : read(dc_n, unit(d, b, u));
    }
    Value out = 0;
    if constexpr (C::kReadsOutput) out = widen(y[time.at(y_strides, t, b) + d * O + u]);
    C::backward(values, previous, out, options, dy_total, ds, dd);

    Storage* to = dgates[d] + time.row(t, b) * C::kD * H + u;
    for (int i = 0; i < C::kD; ++i) to[static_cast<int64_t>(i) * H] = narrow<Storage>(dd[i]);
    if constexpr (C::kHoldsOutput) *direct = ds[0];
    if constexpr (C::kState > 1) {
      *state = ds[1];
      if (!begun && dc0) dc0[unit(d, b, u)] = narrow<Storage>(ds[1]);
    }
  }
};

}  // namespace fastrnn::cuda
