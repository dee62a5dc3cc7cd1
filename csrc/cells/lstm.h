// i, f, o = sigmoid, g = tanh of wx + rh;  c' = f c + i g;  h' = o tanh(c'). Docs:
// docs/cells/lstm.md.
#pragma once

#include "contract.h"

namespace fastrnn::FASTRNN_ISA {

struct Lstm {
  static constexpr int kWx = 4, kRh = 4;
  static constexpr int kState = 2;  // h, c
  static constexpr int kSaved = 5;  // i, f, g, o, c'
  static constexpr int kHeld = 1;   // o
  static constexpr int kStateSlot[kState] = {-1, 4};
  static constexpr bool kProjects = true, kHasRelu = false;
  static constexpr bool kHoldsOutput = false;
  static constexpr bool kReadsOutput = false;
  static constexpr int kD = 4;
  static constexpr int kDwx[kWx] = {0, 1, 2, 3}, kDrh[kRh] = {0, 1, 2, 3};

  template <class V>
  struct In {
    Arr<V, kWx> wx;
    Arr<V, kRh> rh;
    Arr<V, kState> prev;
  };

  template <class V, class Save>
  FASTRNN_HD static void gates(const In<V>& in, const Options&, Arr<V, kState>& next,
                               Arr<V, kHeld>& held, const Save& save) {
    Arr<V, 4> a = {in.wx[0] + in.rh[0], in.wx[1] + in.rh[1], in.wx[3] + in.rh[3],
                   in.wx[2] + in.rh[2]};
    activate<3>(a);
    const V i = a[0], f = a[1], o = a[2], g = a[3];
    const V c = fma(f, in.prev[1], i * g);
    next[1] = c;
    held[0] = o;
    save(0, i), save(1, f), save(2, g), save(3, o), save(4, c);
  }

  template <class V, class Save>
  FASTRNN_HD static void output(const Arr<V, kState>&, const Arr<V, kHeld>& held,
                                Arr<V, kState>& next, const Save&) {
    next[0] = held[0] * tanh(next[1]);
  }

  template <class V>
  FASTRNN_HD static void backward(const Arr<V, kSaved>& saved, const Arr<V, kState>& prev, V,
                                  const Options&, V dy, Arr<V, kState>& ds, Arr<V, kD>& d) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V u = tanh(saved[4]);
    const V dc = fma(dy * o, fnma(u, u, V(1)), ds[1]);
    d[0] = dc * g * i * (V(1) - i);
    d[1] = dc * prev[1] * f * (V(1) - f);
    d[2] = dc * i * fnma(g, g, V(1));
    d[3] = dy * u * o * (V(1) - o);
    ds[1] = dc * f;
  }
};

}  // namespace fastrnn::FASTRNN_ISA
