// Closed loop: the readout of the states is the next input, all steps in one call.
#pragma once

#include "forward.h"
#include "ring.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
struct ForecastSlot {
  Layer<T> layers[reservoir::kMaxLayers];
  Row<T>* rows[reservoir::kMaxLayers];
  int64_t* active;
  T *u, *fed_back;   // [size,I], [size,F]
  double* features;  // of one sequence: [layers*N (+ I)]

  ForecastSlot(const Forecast& f, const ForecastBuffers& b, void* memory, size_t* bytes) {
    Arena arena(memory);
    const ReservoirProblem& p = f.problem;
    const int64_t size = Groups(p).size;
    for (int l = 0; l < f.layers; ++l) {
      layers[l] =
          Layer<T>(p.N, l ? p.N : p.I, l ? 0 : p.F, p.activation, b.weights[l], size, arena);
      rows[l] = arena.take<Row<T>>(size);
    }
    active = arena.take<int64_t>(size);
    u = arena.take<T>(size * p.I);
    fed_back = arena.take<T>(size * p.F);
    features = arena.take<double>(f.layers * p.N + p.I);
    if (bytes) *bytes = arena.bytes();
  }
};

template <class T>
class ForecastRun {
 public:
  ForecastRun(const Forecast& f, const ForecastBuffers& b) : f_(f), p_(f.problem), b_(b) {}

  void group(int64_t m, int64_t first, int64_t count, ForecastSlot<T>& s, const Poll& poll) const {
    for (int l = 0; l < f_.layers; ++l) {
      s.layers[l].load(b_.weights[l], m);
      for (int64_t i = 0; i < count; ++i)
        s.rows[l][i] = s.layers[l].make_row(i, state(m, l, first + i));
    }
    for (int64_t i = 0; i < count; ++i) {
      s.active[i] = i;
      copy(last_input(m, first + i), p_.I, s.u + i * p_.I);
    }
    for (int64_t t = 0; t < p_.T; ++t) {
      if (poll.stops(t)) return;
      for (int64_t i = 0; i < count; ++i) close_loop(m, t, first + i, i, s);
      for (int l = 0; l < f_.layers; ++l) s.layers[l].step(s.rows[l], s.active, count);
    }
    for (int64_t i = 0; i < count; ++i) {
      copy(s.u + i * p_.I, p_.I, last_input(m, first + i));
      for (int l = 0; l < f_.layers; ++l) copy(s.rows[l][i].state, p_.N, state(m, l, first + i));
    }
  }

 private:
  static void copy(const T* from, int64_t n, T* to) {
    for (int64_t i = 0; i < n; ++i) to[i] = from[i];
  }
  T* state(int64_t m, int layer, int64_t b) const {
    return static_cast<T*>(b_.state) + ((m * f_.layers + layer) * p_.B + b) * p_.N;
  }
  T* last_input(int64_t m, int64_t b) const {
    return static_cast<T*>(b_.u) + (m * p_.B + b) * p_.I;
  }

  // Reads out sequence i of the group before step t, and lays out the inputs of that step.
  void close_loop(int64_t m, int64_t t, int64_t b, int64_t i, ForecastSlot<T>& s) const {
    const int64_t units = f_.layers * p_.N, width = units + (f_.sees_input ? p_.I : 0);
    double* out = Offsets<double>{b_.out_strides}.at(b_.out, m, t, b);
    T* u = s.u + i * p_.I;
    for (int l = 0; l < f_.layers; ++l)
      to_features(s.rows[l][i].state, p_.N, f_.square, s.features + l * p_.N);
    if (f_.sees_input) to_features(u, p_.I, false, s.features + units);
    for (int64_t o = 0; o < f_.O; ++o)
      out[o] = (b_.b_out ? b_.b_out[m * f_.O + o] : 0) +
               dot(b_.w_out + (m * f_.O + o) * width, s.features, width);
    T* looped = p_.F ? s.fed_back + i * p_.F : u;
    for (int64_t o = 0; o < f_.O; ++o) looped[o] = T(out[o]);
    const int64_t before = p_.F ? 0 : f_.O;
    if (p_.I > before)
      copy(Offsets<T>{b_.drivers_strides}.at(static_cast<const T*>(b_.drivers), m, t, b),
           p_.I - before, u + before);
    s.rows[0][i].u = u;
    s.rows[0][i].fed_back = p_.F ? looped : nullptr;
    // A layer's state is written to `next`, which the layer above reads in the same step.
    for (int l = 1; l < f_.layers; ++l) s.rows[l][i].u = s.rows[l - 1][i].next;
  }

  const Forecast& f_;
  const ReservoirProblem& p_;
  const ForecastBuffers& b_;
};

template <class T>
size_t forecast_slot_bytes(const Forecast& f) {
  size_t bytes = 0;
  ForecastSlot<T>(f, {}, nullptr, &bytes);
  return bytes;
}

template <class T>
size_t forecast_workspace(const Forecast& f) {
  return f.ring ? ring_bytes<T>(f) : forecast_slot_bytes<T>(f) * size_t(f.problem.threads);
}

template <class T>
bool reservoir_forecast(const Forecast& f, const ForecastBuffers& b) {
  if (f.ring) return RingRun<T>(f, b, b.workspace, nullptr).run();
  const ReservoirProblem& p = f.problem;
  const Groups groups(p);
  const ForecastRun<T> run(f, b);
  const size_t bytes = forecast_slot_bytes<T>(f);
  Team team(p.threads, b.interrupt);
  team.run(p.M * groups.count, [&](int64_t i, int slot_number) {
    const int64_t member = i / groups.count, first = i % groups.count * groups.size;
    const int64_t count = p.B - first < groups.size ? p.B - first : groups.size;
    ForecastSlot<T> slot(f, b, static_cast<char*>(b.workspace) + bytes * size_t(slot_number),
                         nullptr);
    run.group(member, first, count, slot, Poll(team, slot_number, p.N));
  });
  return !team.stopped();
}

}  // namespace fastrnn::FASTRNN_ISA
