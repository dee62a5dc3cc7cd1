// Closed loop of a ring: members read parts of the outputs of one readout of all their states. All
// threads meet twice a step, so they are worth it only for large steps.
#pragma once

#include "forward.h"
#include "readout.h"

namespace fastrnn::FASTRNN_ISA {

using reservoir::Forecast;
using reservoir::ForecastBuffers;

template <class T>
class RingRun {
 public:
  RingRun(const Forecast& f, const ForecastBuffers& b, void* memory, size_t* bytes)
      : f_(f), p_(f.problem), b_(b) {
    Arena arena(memory);
    layers_ = arena.take<Layer<T>>(p_.M * f.layers);
    rows_ = arena.take<Row<T>>(p_.M * f.layers * p_.B);
    active_ = arena.take<int64_t>(p_.B);
    patches_ = arena.take<T>(p_.M * p_.B * p_.I);
    features_ = arena.take<double>(p_.B * width());
    for (int64_t i = 0; i < p_.M * f.layers; ++i) {
      const int64_t l = i % f.layers;
      const Layer<T> layer(p_.N, l ? p_.N : p_.I, 0, p_.activation, b.weights[l], p_.B, arena);
      if (memory) layers_[i] = layer;
    }
    if (bytes) *bytes = arena.bytes();
  }

  bool run() const {
    Team team(p_.threads, b_.interrupt);
    for (int64_t i = 0; i < p_.B; ++i) active_[i] = i;
    team.run(p_.M, [&](int64_t m, int) { start(m); });
    for (int64_t i = 0; i < p_.B; ++i) see_input(i);
    for (int64_t t = 0; t < p_.T && !team.stopped(); ++t) {
      team.run((f_.O + kOutputs - 1) / kOutputs,
               [&](int64_t part, int) { read_out(t, part * kOutputs); });
      for (int64_t i = 0; i < p_.B; ++i) {
        for (int64_t o = 0; o < f_.O; ++o) input(i)[o] = T(out(t, i)[o]);
        see_input(i);
      }
      team.run(p_.M, [&](int64_t m, int) { step(m); });
    }
    for (int64_t m = 0; m < p_.M; ++m) finish(m);
    return !team.stopped();
  }

 private:
  static constexpr int64_t kOutputs = 8;  // of a ticket

  Row<T>* rows(int64_t m, int64_t layer) const { return rows_ + (m * f_.layers + layer) * p_.B; }
  T* state(int64_t m, int64_t layer, int64_t b) const {
    return static_cast<T*>(b_.state) + ((m * f_.layers + layer) * p_.B + b) * p_.N;
  }
  T* input(int64_t b) const { return static_cast<T*>(b_.u) + b * f_.O; }
  int64_t units() const { return p_.M * f_.layers * p_.N; }
  int64_t width() const { return units() + (f_.sees_input ? f_.O : 0); }
  double* features(int64_t b) const { return features_ + b * width(); }
  double* out(int64_t t, int64_t b) const {
    return Offsets<double>{b_.out_strides}.at(b_.out, 0, t, b);
  }

  void start(int64_t m) const {
    for (int64_t l = 0; l < f_.layers; ++l) {
      Layer<T>& layer = layers_[m * f_.layers + l];
      layer.load(b_.weights[l], m);
      for (int64_t i = 0; i < p_.B; ++i) rows(m, l)[i] = layer.make_row(i, state(m, l, i));
    }
    see_states(m);
  }

  void see_states(int64_t m) const {
    for (int64_t l = 0; l < f_.layers; ++l)
      for (int64_t i = 0; i < p_.B; ++i)
        to_features(rows(m, l)[i].state, p_.N, f_.square, features(i) + (m * f_.layers + l) * p_.N);
  }
  void see_input(int64_t i) const {
    if (f_.sees_input) to_features(input(i), f_.O, false, features(i) + units());
  }

  void finish(int64_t m) const {
    for (int64_t l = 0; l < f_.layers; ++l)
      for (int64_t i = 0; i < p_.B; ++i)
        for (int64_t n = 0; n < p_.N; ++n) state(m, l, i)[n] = rows(m, l)[i].state[n];
  }

  void read_out(int64_t t, int64_t first) const {
    for (int64_t o = first; o < first + kOutputs && o < f_.O; ++o)
      for (int64_t i = 0; i < p_.B; ++i)
        out(t, i)[o] =
            (b_.b_out ? b_.b_out[o] : 0) + dot(b_.w_out + o * width(), features(i), width());
  }

  void step(int64_t m) const {
    for (int64_t i = 0; i < p_.B; ++i) {
      T* patch = patches_ + (m * p_.B + i) * p_.I;
      for (int64_t k = 0; k < p_.I; ++k) patch[k] = input(i)[b_.reads[m * p_.I + k]];
      rows(m, 0)[i].u = patch;
      // A layer's state is written to `next`, which the layer above reads in the same step.
      for (int64_t l = 1; l < f_.layers; ++l) rows(m, l)[i].u = rows(m, l - 1)[i].next;
    }
    for (int64_t l = 0; l < f_.layers; ++l)
      layers_[m * f_.layers + l].step(rows(m, l), active_, p_.B);
    see_states(m);
  }

  const Forecast& f_;
  const ReservoirProblem& p_;
  const ForecastBuffers& b_;
  Layer<T>* layers_;  // [M,layers]
  Row<T>* rows_;      // [M,layers,B]
  int64_t* active_;   // [B]
  T* patches_;        // [M,B,I]
  double* features_;  // [B,width]
};

template <class T>
size_t ring_bytes(const Forecast& f) {
  size_t bytes = 0;
  const ForecastBuffers none;
  RingRun<T>(f, none, nullptr, &bytes);
  return bytes;
}

}  // namespace fastrnn::FASTRNN_ISA
