// Closed loop over products of delayed inputs.
#pragma once

#include "forward.h"
#include "readout.h"

namespace fastrnn::FASTRNN_ISA {

using reservoir::Polynomial;
using reservoir::PolynomialBuffers;

template <class T>
class PolynomialRun {
 public:
  PolynomialRun(const Polynomial& p, const PolynomialBuffers& b, void* memory, size_t* bytes)
      : p_(p), b_(b) {
    Arena arena(memory);
    past_ = arena.take<T>(p.window() * p.I);
    lags_ = arena.take<T>(p.delays * p.I + 1);
    products_ = arena.take<T>(p.features);
    features_ = arena.take<double>(p.features + p.I);
    if (bytes) *bytes = arena.bytes();
  }

  void sequence(int64_t b, const Poll& poll) const {
    const int64_t window = p_.window(), I = p_.I;
    T* given = static_cast<T*>(b_.window);
    for (int64_t i = 0; i < window * I; ++i) past_[i] = given[(i / I * p_.B + b) * I + i % I];
    lags_[p_.delays * I] = 1;
    for (int64_t t = 0; t < p_.T; ++t) {
      if (poll.stops(t)) return;
      const T* u = past_ + (t + window - 1) % window * I;
      for (int64_t d = 0; d < p_.delays; ++d)
        for (int64_t k = 0; k < I; ++k)
          lags_[d * I + k] = past_[(t + window - 1 - d * p_.skip) % window * I + k];
      multiply();
      to_features(products_, p_.features, p_.square, features_);
      if (p_.sees_input) to_features(u, I, false, features_ + p_.features);
      double* out = Offsets<double>{b_.out_strides}.at(b_.out, 0, t, b);
      for (int64_t o = 0; o < p_.O; ++o) out[o] = read_out(o);
      T* next = past_ + t % window * I;
      const T* driver =
          Offsets<T>{b_.drivers_strides}.at(static_cast<const T*>(b_.drivers), 0, t, b);
      for (int64_t k = 0; k < I; ++k) next[k] = k < p_.O ? T(out[k]) : driver[k - p_.O];
    }
    for (int64_t i = 0; i < window * I; ++i)
      given[(i / I * p_.B + b) * I + i % I] = past_[(p_.T + i / I) % window * I + i % I];
  }

 private:
  void multiply() const {
    for (int64_t i = 0; i < p_.features; ++i) products_[i] = lags_[b_.monomials[i]];
    for (int64_t k = 1; k < p_.order; ++k)
      for (int64_t i = 0; i < p_.features; ++i)
        products_[i] *= lags_[b_.monomials[k * p_.features + i]];
  }

  double read_out(int64_t o) const {
    const int64_t width = p_.features + (p_.sees_input ? p_.I : 0);
    return (b_.b_out ? b_.b_out[o] : 0) + dot(b_.w_out + o * width, features_, width);
  }

  const Polynomial& p_;
  const PolynomialBuffers& b_;
  T* past_;           // [window,I]: the input that t steps reach is at t mod window
  T* lags_;           // [delays*I+1], the last one 1
  T* products_;       // [features]
  double* features_;  // [features (+ I)]
};

template <class T>
size_t polynomial_slot_bytes(const Polynomial& p) {
  size_t bytes = 0;
  const PolynomialBuffers none;
  PolynomialRun<T>(p, none, nullptr, &bytes);
  return bytes;
}

template <class T>
size_t polynomial_workspace(const Polynomial& p) {
  return polynomial_slot_bytes<T>(p) * size_t(p.threads);
}

template <class T>
bool polynomial_forecast(const Polynomial& p, const PolynomialBuffers& b) {
  const size_t bytes = polynomial_slot_bytes<T>(p);
  Team team(p.threads, b.interrupt);
  team.run(p.B, [&](int64_t row, int slot) {
    const PolynomialRun<T> run(p, b, static_cast<char*>(b.workspace) + bytes * size_t(slot),
                               nullptr);
    run.sequence(row, Poll(team, slot, p.features));
  });
  return !team.stopped();
}

}  // namespace fastrnn::FASTRNN_ISA
