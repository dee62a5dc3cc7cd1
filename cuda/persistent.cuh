// One cooperative launch, a whole sequence: each block keeps the recurrent weights of some hidden
// units in shared memory and, if they are too many for it, the first chunks of k in registers.
// Blocks exchange h through global memory behind a flag. Blocks of
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
  if (thread_index() == 0) add_release(flag, 1u);
}
// Waits until `count` arrivals, and sees what was written before them.
FASTRNN_DEVICE void wait_for(const unsigned* flag, int count) {
  if (thread_index() == 0)
    while (static_cast<int>(load_acquire(flag)) < count - FASTRNN_PLANTED(kCountShort))
      spin_pause();
  block_barrier();
}

// The shared memory of a block: weights, the operand's rows, partial sums. Its rows of weights are
// in pairs of 16, `length` is that of a sum, rounded up, and `held` of it are in registers.
template <class F>
struct PersistentShape {
  using Storage = typename F::Storage;
  using Value = typename F::Value;
  using T = Tile<F, 2>;
  int pairs, columns, length, held;

  FASTRNN_HD int pitch() const { return length + T::kVector; }
  FASTRNN_HD int weights_pitch() const { return length - held + T::kVector; }
  FASTRNN_HD int64_t weights() const {
    return length > held ? int64_t(pairs) * T::kRows * weights_pitch() : 0;
  }
  FASTRNN_HD int64_t register_bytes() const {
    return int64_t(pairs) * T::kRows * held * int64_t(sizeof(Storage));
  }
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
    const int row = item / kParts / across * T::kRows;
    typename F::Value sums[2][2][4] = {};
    for (int k = 0; k < length; k += T::kChunk)
      T::template add<kTransposed>(sums,
                                   weights + (kTransposed ? int64_t(k) * weights_pitch + row
                                                          : int64_t(row) * weights_pitch + k),
                                   weights_pitch, operand + column * pitch + k, pitch, part);
    T::leave(sums, partial, columns, part, column, row);
  }
}

// The first row of this warp's tiles, and the k where its part of chunk i begins.
template <int kTiles>
FASTRNN_DEVICE int held_row() {
  return thread_index() / 32 / kParts * kTiles * 16;
}
template <class F>
FASTRNN_DEVICE int held_step(int i) {
  return (i * kParts + thread_index() / 32 % kParts) * F::kStep;
}

// The same with the first chunks of weights in registers: a warp has half of the rows, and all
// columns. `weights` are those of the other chunks.
template <class F, bool kTransposed, int kTiles>
FASTRNN_DEVICE void multiply(const Held<F, kTiles>& held, const typename F::Storage* weights,
                             int weights_pitch, const typename F::Storage* operand, int columns,
                             int length, typename F::Value* partial) {
  static_assert(kPersistentThreads == 2 * kParts * 32, "a warp for each half and part");
  using T = Tile<F, 2>;
  const int part = thread_index() / 32 % kParts, row = held_row<kTiles>();
  const int pitch = length + T::kVector;
  for (int column = 0; column < columns; column += 16) {
    const typename F::Storage* from = operand + column * pitch;
    typename F::Value sums[kTiles][2][4] = {};
    FASTRNN_UNROLL
    for (int i = 0; i < Held<F, kTiles>::kChunks; ++i)
      if (i * T::kChunk < length) {
        const auto numbers = F::columns(from + held_step<F>(i), pitch);
        for (int tile = 0; tile < kTiles; ++tile) F::add(sums[tile], held.at[i][tile], numbers);
      }
    for (int k = held_step<F>(Held<F, kTiles>::kChunks), w = part * F::kStep; k < length;
         k += T::kChunk, w += T::kChunk)
      F::template multiply<kTransposed>(
          sums, weights + (kTransposed ? w * weights_pitch + row : row * weights_pitch + w),
          weights_pitch, from + k, pitch);
    T::leave(sums, partial, columns, part, column, row);
  }
}

// Rows of weights, of `length` numbers each, into shared memory but what registers hold: row_of(i)
// is where they are; null: zeros.
template <class F, class RowOf>
FASTRNN_DEVICE void load_rows(const PersistentShape<F>& shape, typename F::Storage* to, int length,
                              const RowOf& row_of) {
  using T = Tile<F, 2>;
  const int across = (shape.length - shape.held) / T::kVector;
  for (int i = thread_index(); i < shape.pairs * T::kRows * across; i += kPersistentThreads) {
    const int row = i / across, v = i % across * T::kVector, k = shape.held + v;
    const typename F::Storage* from = row_of(row);
    const bool inside = from && k < length;
    copy16(to + row * shape.weights_pitch() + v, from + (inside ? k : 0), inside ? length - k : 0);
  }
  cp_async_commit();
}
// The operand's rows, of `length` numbers each: column_of(i) is where sequence i's is; null: zeros.
template <class F, class ColumnOf>
FASTRNN_DEVICE void load_columns(const PersistentShape<F>& shape, typename F::Storage* to,
                                 int length, const ColumnOf& column_of) {
  using T = Tile<F, 2>;
  const int across = shape.length / T::kVector;
  for (int i = thread_index(); i < shape.columns * across; i += kPersistentThreads) {
    const int b = i / across, k = i % across * T::kVector;
    const typename F::Storage* from = column_of(b);
    const bool inside = from && k < length;
    copy16(to + b * shape.pitch() + k, from + (inside ? k : 0), inside ? length - k : 0);
  }
  cp_async_commit();
}
// The sums of all of a block's rows, when what has been copied is there.
template <class F>
FASTRNN_DEVICE void multiply_block(const PersistentShape<F>& shape,
                                   const typename F::Storage* weights,
                                   const typename F::Storage* operand, typename F::Value* partial) {
  cp_async_wait<0>();
  block_barrier();
  multiply<F, false>(weights, shape.weights_pitch(), shape.pairs, operand, shape.columns,
                     shape.length, partial);
  block_barrier();
}
template <class F>
FASTRNN_DEVICE typename F::Value row_sum(typename F::Value start, const PersistentShape<F>& shape,
                                         const typename F::Value* partial, int row, int column) {
  using T = Tile<F, 2>;
  return T::total(start, partial + row / T::kRows * shape.partial(), shape.columns, column,
                  row % T::kRows);
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

  // A row of a block's weights; null: there is none, zeros.
  FASTRNN_DEVICE const Storage* weights_of(int d, int u0, int row) const {
    const int gate = row / units, u = u0 + row % units;
    return gate < C::kRh && u < cell.H
               ? weights[d] + (static_cast<int64_t>(gate) * cell.H + u) * cell.O
               : nullptr;
  }
  template <int kTiles>
  FASTRNN_DEVICE void hold(Held<F, kTiles>& held, int d, int u0) const {
    const Storage* rows[kTiles][2];
    for (int i = 0; i < 2 * kTiles; ++i)
      rows[i / 2][i % 2] = weights_of(d, u0, held_row<kTiles>() + i * 8 + thread_index() % 32 / 4);
    FASTRNN_ROLLED
    for (int i = 0; i < Held<F, kTiles>::kChunks; ++i) {
      held.shift();
      for (int tile = 0; tile < kTiles; ++tile)
        held.last()[tile] = F::hold([&](int half, int k) {
          const int at = held_step<F>(i) + k;
          return rows[tile][half] && at < cell.O ? rows[tile][half][at] : Storage{};
        });
    }
  }
  FASTRNN_DEVICE const Storage* operand(int buffer, int d, int b) const {
    return b < cell.time.B ? exchanged(buffer, d, b) : nullptr;
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
      for (int g = 0; g < C::kRh; ++g)
        sums[g] = row_sum(cell.bias(d, g, u), shape, partial, g * units + i % units, column);
      exchanged(buffer, d, b)[u] =
          cell.finish(d, t, b, u, sums, states + (C::kState > 1 ? unit(d, b, u) : 0));
    }
  }
};

template <class Task, int kHeldTiles>
FASTRNN_KERNEL(kPersistentThreads, 1)
persistent_forward(const Task task) {
  using Format = typename Task::Format;
  using Storage = typename Task::Storage;
  using Value = typename Task::Value;
  const Timeline& time = task.cell.time;
  const int d = block_z(), u0 = block_x() * task.units, b0 = block_y() * task.shape.columns;
  auto* weights = static_cast<Storage*>(static_cast<void*>(dynamic_shared()));
  Storage* operand = weights + task.shape.weights();
  auto* partial = static_cast<Value*>(static_cast<void*>(operand + task.shape.operand()));
  unsigned* flag = task.flags + (d * task.row_blocks + block_y()) * kFlagPitch;

  Held<Format, kHeldTiles> held = {};
  if constexpr (kHeldTiles > 0) task.hold(held, d, u0);
  load_rows(task.shape, weights, task.cell.O, [&](int row) { return task.weights_of(d, u0, row); });
  task.begin(d, u0, b0);
  cp_async_wait<0>();
  arrive(flag);
  int arrivals = task.unit_blocks;
  const int first = time.reversed(d) ? time.T - 1 - time.last(b0) : 0;
  for (int step = first; step < time.T; ++step, arrivals += task.unit_blocks) {
    const int t = time.time(d, step);
    if (time.alive(t) <= b0) break;  // and so for all later steps: this is direction 0
    wait_for(flag, arrivals);
    load_columns(task.shape, operand, task.cell.O,
                 [&](int b) { return task.operand(step % 2, d, b0 + b); });
    if constexpr (kHeldTiles > 0) {
      cp_async_wait<0>();
      block_barrier();
      multiply<Format, false>(held, weights, task.shape.weights_pitch(), operand,
                              task.shape.columns, task.shape.length, partial);
      block_barrier();
    } else {
      multiply_block(task.shape, weights, operand, partial);
    }
    task.finish(d, t, u0, b0, (step + 1) % 2, partial);
    arrive(flag);
  }
}

}  // namespace fastrnn::cuda
