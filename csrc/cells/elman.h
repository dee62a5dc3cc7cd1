// h' = f(wx + rh), f = tanh or relu. Docs: docs/cells/elman.md.
#pragma once

#include "contract.h"

namespace fastrnn::FASTRNN_ISA {

struct Elman {
  static constexpr int kWx = 1, kRh = 1;
  static constexpr int kState = 1;
  static constexpr int kSaved = 0, kHeld = 0;
  static constexpr int kStateSlot[kState] = {-1};
  static constexpr bool kProjects = false, kHasRelu = true;
  static constexpr bool kHoldsOutput = false;
  static constexpr bool kReadsOutput = true;
  static constexpr int kD = 1;
  static constexpr int kDwx[kWx] = {0}, kDrh[kRh] = {0};

  template <class V>
  struct In {
    Arr<V, kWx> wx;
    Arr<V, kRh> rh;
    Arr<V, kState> prev;
  };

  template <class V, class Save>
  FASTRNN_HD static void gates(const In<V>& in, const Options& options, Arr<V, kState>& next,
                               Arr<V, kHeld>&, const Save&) {
    const V a = in.wx[0] + in.rh[0];
    next[0] = options.relu ? relu(a) : tanh(a);
  }

  template <class V, class Save>
  FASTRNN_HD static void output(const Arr<V, kState>&, const Arr<V, kHeld>&, Arr<V, kState>&,
                                const Save&) {}

  template <class V>
  FASTRNN_HD static void backward(const Arr<V, kSaved>&, const Arr<V, kState>&, V y,
                                  const Options& options, V dy, Arr<V, kState>&, Arr<V, kD>& d) {
    d[0] = options.relu ? relu_backward(y, dy) : fnma(y * y, dy, dy);
  }
};

}  // namespace fastrnn::FASTRNN_ISA
