// One cooperative launch, a whole sequence: each block keeps the recurrent weights of some hidden
// units in shared memory, and blocks exchange h through global memory behind a flag. Blocks of
// different directions or different sequences of the batch need nothing of each other.
#pragma once

#include "sequence.cuh"
#include "tile.cuh"

namespace fastrnn::cuda {

constexpr int kPersistentThreads = 256;
constexpr int kFlagPitch = 32;  // flags lie 128 bytes apart

// Says that all that this block has written is there.
FASTRNN_DEVICE void arrive(unsigned* flag) {
  block_barrier();
  if (thread_index() == 0) add_release(flag, 1);
}
// Waits until `count` arrivals, and sees what was written before them.
FASTRNN_DEVICE void wait_for(const unsigned* flag, int count) {
  if (thread_index() == 0)
    while (static_cast<int>(load_acquire(flag)) < count - FASTRNN_PLANTED(kCountShort))
      spin_pause();
  block_barrier();
}

// The shared memory of a block: weights, the operand's rows, partial sums. Its `rows` of weights
// are in pairs of 16 and `length` is that of a sum, rounded up.
template <class F>
struct PersistentShape {
  using Storage = typename F::Storage;
  using Value = typename F::Value;
  using T = Tile<F, 2>;
  int pairs, columns, length;

  FASTRNN_HD int pitch() const { return length + T::kVector; }
  FASTRNN_HD int64_t weights() const { return int64_t(pairs) * T::kRows * pitch(); }
  FASTRNN_HD int64_t operand() const { return int64_t(columns) * pitch(); }
  FASTRNN_HD int64_t partial() const { return int64_t(kParts) * columns * T::kPitch; }
  FASTRNN_HD int64_t weight_bytes() const { return weights() * int64_t(sizeof(Storage)); }
  FASTRNN_HD int64_t bytes() const {
    return (weights() + operand()) * int64_t(sizeof(Storage)) +
           pairs * partial() * int64_t(sizeof(Value));
  }
  FASTRNN_HD static int rounded(int64_t k) {
    return static_cast<int>((k + T::kChunk - 1) / T::kChunk * T::kChunk);
  }
};

// All products of a step; the warps share them by rows (in pairs of 16), columns and parts of k.
template <class F, bool kTransposed>
FASTRNN_DEVICE void multiply(const typename F::Storage* weights, int weights_pitch, int pairs,
                             const typename F::Storage* operand, int columns, int length,
                             typename F::Value* partial) {
  using T = Tile<F, 2>;
  const int across = columns / 16, pitch = length + T::kVector;
  for (int item = thread_index() / 32; item < pairs * across * kParts;
       item += kPersistentThreads / 32) {
    const int part = item % kParts, column = item / kParts % across * 16;
    const int pair = item / kParts / across, row = pair * T::kRows;
    typename F::Value sums[2][2][4] = {};
    for (int k = 0; k < length; k += T::kChunk)
      T::template add<kTransposed>(sums,
                                   weights + (kTransposed ? int64_t(k) * weights_pitch + row
                                                          : int64_t(row) * weights_pitch + k),
                                   weights_pitch, operand + column * pitch + k, pitch, part);
    T::leave(sums, partial + int64_t(pair) * kParts * columns * T::kPitch, columns, part, column);
  }
}

template <class C, class F>
struct PersistentForward {
  using Format = F;
  using Storage = typename F::Storage;
  using Value = typename F::Value;
  using T = Tile<F, 2>;

  ForwardCell<C, F> cell;
  PersistentShape<F> shape;
  const Storage* weights[2];
  Storage* exchange;  // [2,D,B,length]
  Value* states;      // [D,B,H]
  unsigned* flags;    // [D,row_blocks], kFlagPitch apart; zeros
  int units, unit_blocks, row_blocks;

  FASTRNN_DEVICE Storage* exchanged(int buffer, int d, int b) const {
    if (FASTRNN_PLANTED(kSingleBuffer)) buffer = 0;
    return exchange +
           ((static_cast<int64_t>(buffer) * cell.D + d) * cell.time.B + b) * shape.length;
  }
  FASTRNN_DEVICE int64_t unit(int d, int b, int u) const {
    return (static_cast<int64_t>(d) * cell.time.B + b) * cell.H + u;
  }

  FASTRNN_DEVICE void load_weights(Storage* to, int d, int u0) const {
    const int across = shape.length / T::kVector;
    for (int i = thread_index(); i < shape.pairs * T::kRows * across; i += kPersistentThreads) {
      const int row = i / across, k = i % across * T::kVector;
      const int gate = row / units, u = u0 + row % units;
      const bool inside = gate < C::kRh && u < cell.H && k < cell.O;
      copy16(to + row * shape.pitch() + k,
             weights[d] + (static_cast<int64_t>(gate) * cell.H + u) * cell.O + k,
             inside ? cell.O - k : 0);
    }
    cp_async_commit();
  }
  FASTRNN_DEVICE void load_operand(Storage* to, int buffer, int d, int b0) const {
    const int across = shape.length / T::kVector;
    for (int i = thread_index(); i < shape.columns * across; i += kPersistentThreads) {
      const int b = i / across, k = i % across * T::kVector;
      const bool inside = b0 + b < cell.time.B && k < cell.O;
      copy16(to + b * shape.pitch() + k, exchanged(buffer, d, b0 + b) + k, inside ? cell.O - k : 0);
    }
    cp_async_commit();
  }
  // Both buffers begin with h0: a sequence may begin at a later step than others.
  FASTRNN_DEVICE void begin(int d, int u0, int b0) const {
    for (int i = thread_index(); i < units * shape.columns; i += kPersistentThreads) {
      const int u = u0 + i % units, b = b0 + i / units;
      if (u >= cell.H || b >= cell.time.B) continue;
      const Storage h = cell.h0 ? cell.h0[unit(d, b, u)] : Storage{};
      exchanged(0, d, b)[u] = h, exchanged(1, d, b)[u] = h;
    }
  }
  FASTRNN_DEVICE void finish(int d, int t, int u0, int b0, int buffer, const Value* partial) const {
    for (int i = thread_index(); i < units * shape.columns; i += kPersistentThreads) {
      const int u = u0 + i % units, column = i / units, b = b0 + column;
      if (u >= cell.H || b >= cell.time.alive(t)) continue;
      Value sums[C::kRh];
      for (int g = 0; g < C::kRh; ++g) {
        const int row = g * units + i % units;
        sums[g] = T::total(cell.bias(d, g, u), partial + row / T::kRows * shape.partial(),
                           shape.columns, column, row % T::kRows);
      }
      exchanged(buffer, d, b)[u] =
          cell.finish(d, t, b, u, sums, states + (C::kState > 1 ? unit(d, b, u) : 0));
    }
  }
};

template <class Task>
FASTRNN_KERNEL(kPersistentThreads)
persistent_forward(const Task task) {
  using Storage = typename Task::Storage;
  using Value = typename Task::Value;
  const Timeline& time = task.cell.time;
  const int d = block_z(), u0 = block_x() * task.units, b0 = block_y() * task.shape.columns;
  auto* weights = static_cast<Storage*>(static_cast<void*>(dynamic_shared()));
  Storage* operand = weights + task.shape.weights();
  auto* partial = static_cast<Value*>(static_cast<void*>(operand + task.shape.operand()));
  unsigned* flag = task.flags + (d * task.row_blocks + block_y()) * kFlagPitch;

  task.load_weights(weights, d, u0);
  task.begin(d, u0, b0);
  cp_async_wait<0>();
  arrive(flag);
  int arrivals = task.unit_blocks;
  const int first = time.reversed(d) ? time.T - 1 - time.last(b0) : 0;
  for (int step = first; step < time.T; ++step, arrivals += task.unit_blocks) {
    const int t = time.time(d, step);
    if (time.alive(t) <= b0) break;  // and so for all later steps: this is direction 0
    wait_for(flag, arrivals);
    task.load_operand(operand, step % 2, d, b0);
    cp_async_wait<0>();
    block_barrier();
    multiply<typename Task::Format, false>(weights, task.shape.pitch(), task.shape.pairs, operand,
                                           task.shape.columns, task.shape.length, partial);
    block_barrier();
    task.finish(d, t, u0, b0, (step + 1) % 2, partial);
    arrive(flag);
  }
}

}  // namespace fastrnn::cuda
