// Backpropagation through time: from dy to dx, dh0 and what feeds back; the weights are fixed.
#pragma once

#include "forward.h"
#include "transposed.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
struct BackwardSlot {
  T *w_ih, *w_fb, *leak, *d_state, *d_former, *d_sum, *d_kept;

  BackwardSlot(const ReservoirProblem& p, void* memory, size_t* bytes) {
    Arena arena(memory);
    const int64_t padded = blocks_of(p.N) * kBlock;
    w_ih = arena.take<T>(padded * p.I);
    w_fb = arena.take<T>(padded * p.F);
    leak = arena.take<T>(padded);
    for (T** buffer : {&d_state, &d_former, &d_sum, &d_kept})
      *buffer = arena.take<T>(extended(p.N));
    if (bytes) *bytes = arena.bytes();
  }
};

template <class T>
class BackwardRun {
 public:
  using V = Vec<T>;

  BackwardRun(const ReservoirProblem& p, const reservoir::BackwardBuffers& b) : p_(p), b_(b) {}

  void load(BackwardSlot<T>& s, int64_t m) const {
    const auto& w = b_.weights;
    pack_panels(static_cast<const T*>(w.w_ih) + m * p_.N * p_.I, p_.N, p_.I, s.w_ih);
    pack_panels(static_cast<const T*>(w.w_fb) + m * p_.N * p_.F, p_.N, p_.F, s.w_fb);
    for (int64_t i = 0; i < blocks_of(p_.N) * kBlock; ++i)
      s.leak[i] = i < p_.N ? static_cast<const T*>(w.leak)[m * p_.N + i] : T(0);
  }

  void sequence(int64_t m, int64_t b, BackwardSlot<T>& s, const Poll& poll) const {
    const MatrixView<T> recurrent(b_.weights.recurrent, p_.N, m);
    const MatrixView<T> carry(b_.weights.carry, p_.N, m);
    const int64_t length = length_of(b_.lengths, b, p_.T);
    const T* dh_n = static_cast<const T*>(b_.dh_n);
    for (int64_t n = 0; n < extended(p_.N); ++n) {
      s.d_state[n] = dh_n && n < p_.N ? dh_n[(m * p_.B + b) * p_.N + n] : T(0);
      s.d_former[n] = s.d_sum[n] = s.d_kept[n] = 0;
    }
    for (int64_t t = length; t < p_.T; ++t) {
      clear(inputs(m, t, b), p_.I);
      clear(fed_back(m, t, b), p_.F);
    }
    for (int64_t step = length - 1; step >= 0; --step) {
      if (poll.stops(step)) return;
      const int64_t t = p_.reverse ? length - 1 - step : step;
      through_activation(m, t, b, carry.layout != Layout::kNone, s);
      add_transposed(recurrent, s.d_sum, s.d_former);
      add_transposed(carry, s.d_kept, s.d_former);
      spread(s.w_ih, p_.I, s.d_sum, inputs(m, t, b));
      spread(s.w_fb, p_.F, s.d_sum, fed_back(m, t, b));
      T* done = s.d_state;
      s.d_state = s.d_former, s.d_former = done;
    }
    T* dh0 = static_cast<T*>(b_.dh0) + (m * p_.B + b) * p_.N;
    for (int64_t n = 0; n < p_.N; ++n) dh0[n] = s.d_state[n];
  }

 private:
  T* inputs(int64_t m, int64_t t, int64_t b) const {
    return Offsets<T>{b_.dx_strides}.at(static_cast<T*>(b_.dx), m, t, b);
  }
  T* fed_back(int64_t m, int64_t t, int64_t b) const {
    return Offsets<T>{b_.dfeedback_strides}.at(static_cast<T*>(b_.dfeedback), m, t, b);
  }
  static void clear(T* to, int64_t count) {
    for (int64_t i = 0; to && i < count; ++i) to[i] = 0;
  }
  void spread(const T* panels, int64_t count, const T* d, T* to) const {
    if (!to) return;
    clear(to, count);
    add_transposed_panels(panels, blocks_of(p_.N), count, d, to);
  }

  // From the gradient of the state after step t to those of the sum and of what was kept.
  void through_activation(int64_t m, int64_t t, int64_t b, bool carries, BackwardSlot<T>& s) const {
    const T* dy = Offsets<T>{b_.dy_strides}.at(static_cast<const T*>(b_.dy), m, t, b);
    const T* f = static_cast<const T*>(b_.activated) + ((m * p_.T + t) * p_.B + b) * p_.N;
    for (int64_t i = 0; i < p_.N; i += V::kWidth) {
      const int n = int(p_.N - i < V::kWidth ? p_.N - i : V::kWidth);
      const V d = V::load(s.d_state + i, n) + V::load(dy + i, n);
      const V leak = V::load(s.leak + i, n);
      const V kept = (V(1) - leak) * d;
      (leak * d * activation_slope(p_.activation, V::load(f + i, n))).store(s.d_sum + i, n);
      (carries ? V(0) : kept).store(s.d_former + i, n);
      if (carries) kept.store(s.d_kept + i, n);
    }
  }

  const ReservoirProblem& p_;
  const reservoir::BackwardBuffers& b_;
};

template <class T>
size_t backward_slot_bytes(const ReservoirProblem& p) {
  size_t bytes = 0;
  BackwardSlot<T>(p, nullptr, &bytes);
  return bytes;
}

template <class T>
bool reservoir_backward(const ReservoirProblem& p, const reservoir::BackwardBuffers& b) {
  const BackwardRun<T> run(p, b);
  const size_t bytes = backward_slot_bytes<T>(p);
  Team team(p.threads, b.interrupt);
  const Groups groups(p);
  team.run(p.M * groups.count, [&](int64_t i, int slot_number) {
    const int64_t member = i / groups.count, first = i % groups.count * groups.size;
    BackwardSlot<T> slot(p, static_cast<char*>(b.workspace) + bytes * size_t(slot_number), nullptr);
    run.load(slot, member);
    for (int64_t row = first; row < first + groups.size && row < p.B; ++row)
      run.sequence(member, row, slot, Poll(team, slot_number, p.N));
  });
  return !team.stopped();
}

}  // namespace fastrnn::FASTRNN_ISA
