// Reset-after: r, z = sigmoid(wx + rh);  n = tanh(wx + r rh);  h' = (1 - z) n + z h.
// Docs: docs/cells/gru.md.
#pragma once

#include "contract.h"

namespace fastrnn::FASTRNN_ISA {

struct Gru {
  static constexpr int kWx = 3, kRh = 3;
  static constexpr int kState = 1;
  static constexpr int kSaved = 4;  // r, z, n, rh of n
  static constexpr int kHeld = 2;   // z, the pre-activation of n
  static constexpr int kStateSlot[kState] = {-1};
  static constexpr bool kProjects = false, kHasRelu = false;
  static constexpr bool kHoldsOutput = true;
  static constexpr bool kReadsOutput = false;
  static constexpr int kD = 4;  // of n, r, z, and n's recurrent part
  static constexpr int kDwx[kWx] = {1, 2, 0}, kDrh[kRh] = {1, 2, 3};

  template <class V>
  struct In {
    Arr<V, kWx> wx;
    Arr<V, kRh> rh;
    Arr<V, kState> prev;
  };

  template <class V, class Save>
  FASTRNN_HD static void gates(const In<V>& in, const Options&, Arr<V, kState>&,
                               Arr<V, kHeld>& held, const Save& save) {
    Arr<V, 2> a = {in.wx[0] + in.rh[0], in.wx[1] + in.rh[1]};
    activate<2>(a);
    const V r = a[0], z = a[1];
    held[0] = z, held[1] = fma(r, in.rh[2], in.wx[2]);
    save(0, r), save(1, z), save(3, in.rh[2]);
  }

  template <class V, class Save>
  FASTRNN_HD static void output(const Arr<V, kState>& prev, const Arr<V, kHeld>& held,
                                Arr<V, kState>& next, const Save& save) {
    const V z = held[0], n = tanh(held[1]);
    next[0] = fma(z, prev[0] - n, n);
    save(2, n);
  }

  template <class V>
  FASTRNN_HD static void backward(const Arr<V, kSaved>& saved, const Arr<V, kState>& prev, V,
                                  const Options&, V dy, Arr<V, kState>& ds, Arr<V, kD>& d) {
    const V r = saved[0], z = saved[1], n = saved[2];
    const V dn = dy * (V(1) - z) * fnma(n, n, V(1));
    d[0] = dn;
    d[1] = dn * saved[3] * r * (V(1) - r);
    d[2] = dy * (prev[0] - n) * z * (V(1) - z);
    d[3] = dn * r;
    ds[0] = dy * z;
  }
};

}  // namespace fastrnn::FASTRNN_ISA
