// Numbers that carry a derivative along: a cell's maths in these computes it and differentiates it.
#pragma once

#include "vec.h"

namespace fastrnn::FASTRNN_ISA {

// v + d e with e^2 = 0.
template <class V>
struct Dual {
  V v, d;

  Dual() = default;
  FASTRNN_HD Dual(V value, V derivative) : v(value), d(derivative) {}
  FASTRNN_HD explicit Dual(int value) : v(value), d(0) {}

  FASTRNN_HD friend Dual operator+(Dual a, Dual b) { return {a.v + b.v, a.d + b.d}; }
  FASTRNN_HD friend Dual operator-(Dual a, Dual b) { return {a.v - b.v, a.d - b.d}; }
  FASTRNN_HD friend Dual operator*(Dual a, Dual b) { return {a.v * b.v, fma(a.d, b.v, a.v * b.d)}; }
  FASTRNN_HD friend Dual fma(Dual a, Dual b, Dual c) {
    return {fma(a.v, b.v, c.v), fma(a.d, b.v, fma(a.v, b.d, c.d))};
  }
  FASTRNN_HD friend Dual fnma(Dual a, Dual b, Dual c) {
    return {fnma(a.v, b.v, c.v), fnma(a.d, b.v, fnma(a.v, b.d, c.d))};
  }
  FASTRNN_HD friend Dual relu(Dual x) { return {relu(x.v), relu_backward(x.v, x.d)}; }
  FASTRNN_HD friend Dual relu_backward(Dual y, Dual dy) {
    return {relu_backward(y.v, dy.v), relu_backward(y.v, dy.d)};
  }
  FASTRNN_HD friend Dual sigmoid(Dual x) {
    const V s = sigmoid(x.v);
    return {s, x.d * s * (V(1) - s)};
  }
  FASTRNN_HD friend Dual tanh(Dual x) {
    const V t = tanh(x.v);
    return {t, x.d * fnma(t, t, V(1))};
  }
};

}  // namespace fastrnn::FASTRNN_ISA
