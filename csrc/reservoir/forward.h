// Runs of a reservoir: every ticket is one member on one group of sequences, from its first step to
// its last, so threads meet at the end only.
#pragma once

#include "../cpu/threads.h"
#include "layer.h"

namespace fastrnn::FASTRNN_ISA {

using ReservoirProblem = reservoir::Problem;

// Sequences that one thread takes through a step together: the weights of a block of rows are read
// once for all of them.
struct Groups {
  int64_t size, count;  // sequences of a group at most, groups of a member

  explicit Groups(const ReservoirProblem& p) {
    constexpr int64_t kMost = 64;
    const int64_t members = p.M > 0 ? p.M : 1;
    int64_t wanted = (p.threads + members - 1) / members;
    if (wanted * kMost < p.B) wanted = (p.B + kMost - 1) / kMost;
    size = (p.B + wanted - 1) / wanted;
    if (size > 1) size = (size + kTileRows - 1) / kTileRows * kTileRows;
    if (size < 1) size = 1;
    count = (p.B + size - 1) / size;
  }
};

template <class T>
struct Offsets {  // of (member, step, row) by strides
  reservoir::Strides strides;

  template <class P>
  FASTRNN_HD P* at(P* base, int64_t m, int64_t t, int64_t b) const {
    return base ? base + m * strides.member + t * strides.step + b * strides.row : nullptr;
  }
};

// Whether to stop, between the steps of a ticket: asked often enough for a person who waits, and
// too rarely to take time.
class Poll {
 public:
  Poll(Team& team, int slot, int64_t units) : team_(team), slot_(slot), every_(1 + 4096 / units) {}

  bool stops(int64_t step) const {
    if (step % every_) return false;
    return slot_ == 0 ? team_.asked_to_stop() : team_.stopped();
  }

 private:
  Team& team_;
  int slot_;
  int64_t every_;
};

// What a ticket has in its slot's part of the workspace.
template <class T>
struct ForwardSlot {
  Layer<T> layer;
  Row<T>* rows;
  int64_t* active;

  ForwardSlot(const ReservoirProblem& p, const reservoir::Weights& w, void* memory, size_t* bytes) {
    Arena arena(memory);
    const int64_t size = Groups(p).size;
    layer = Layer<T>(p.N, p.I, p.F, p.activation, w, size, arena);
    rows = arena.take<Row<T>>(size);
    active = arena.take<int64_t>(size);
    if (bytes) *bytes = arena.bytes();
  }
};

FASTRNN_HD int64_t length_of(const int64_t* lengths, int64_t b, int64_t T) {
  return lengths ? lengths[b] : T;
}

template <class T>
class ForwardRun {
 public:
  ForwardRun(const ReservoirProblem& p, const reservoir::ForwardBuffers& b) : p_(p), b_(b) {}

  void group(int64_t member, int64_t first, int64_t count, ForwardSlot<T>& slot,
             const Poll& poll) const {
    slot.layer.load(b_.weights, member);
    for (int64_t i = 0; i < count; ++i) {
      const T* h0 = static_cast<const T*>(b_.h0);
      slot.rows[i] = slot.layer.make_row(i, h0 ? h0 + (member * p_.B + first + i) * p_.N : nullptr);
    }
    for (int64_t s = 0; s < p_.T; ++s) {
      if (poll.stops(s)) return;
      int64_t alive = 0;
      for (int64_t i = 0; i < count; ++i)
        if (place(slot.rows[i], member, s, first + i)) slot.active[alive++] = i;
      slot.layer.step(slot.rows, slot.active, alive);
    }
    T* h_n = static_cast<T*>(b_.h_n) + (member * p_.B + first) * p_.N;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t n = 0; n < p_.N; ++n) h_n[i * p_.N + n] = slot.rows[i].state[n];
  }

 private:
  // Points a row to step s of its sequence; false: the sequence is over, and y there is zero.
  bool place(Row<T>& row, int64_t m, int64_t s, int64_t b) const {
    const int64_t length = length_of(b_.lengths, b, p_.T);
    const int64_t t = p_.reverse && s < length ? length - 1 - s : s;
    row.y = Offsets<T>{b_.y_strides}.at(static_cast<T*>(b_.y), m, t, b);
    if (s >= length) {
      for (int64_t n = 0; row.y && n < p_.N; ++n) row.y[n] = 0;
      return false;
    }
    const int64_t dense = ((m * p_.T + t) * p_.B + b) * p_.N;
    row.u = Offsets<T>{b_.x_strides}.at(static_cast<const T*>(b_.x), m, t, b);
    row.fed_back = Offsets<T>{b_.feedback_strides}.at(static_cast<const T*>(b_.feedback), m, t, b);
    row.noise = b_.noise ? static_cast<const T*>(b_.noise) + dense : nullptr;
    row.activated = b_.activated ? static_cast<T*>(b_.activated) + dense : nullptr;
    return true;
  }

  const ReservoirProblem& p_;
  const reservoir::ForwardBuffers& b_;
};

template <class T>
size_t forward_slot_bytes(const ReservoirProblem& p) {
  size_t bytes = 0;
  ForwardSlot<T>(p, {}, nullptr, &bytes);
  return bytes;
}

template <class T>
bool reservoir_forward(const ReservoirProblem& p, const reservoir::ForwardBuffers& b) {
  const Groups groups(p);
  const ForwardRun<T> run(p, b);
  const size_t bytes = forward_slot_bytes<T>(p);
  Team team(p.threads, b.interrupt);
  team.run(p.M * groups.count, [&](int64_t i, int slot_number) {
    const int64_t member = i / groups.count, first = i % groups.count * groups.size;
    const int64_t count = p.B - first < groups.size ? p.B - first : groups.size;
    ForwardSlot<T> slot(p, b.weights, static_cast<char*>(b.workspace) + bytes * size_t(slot_number),
                        nullptr);
    run.group(member, first, count, slot, Poll(team, slot_number, p.N));
  });
  return !team.stopped();
}

}  // namespace fastrnn::FASTRNN_ISA
