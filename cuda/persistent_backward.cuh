// The backward pass of a whole sequence in one cooperative launch. The gradients of the gates are
// several times as many as those of h, so blocks divide the product twice: block (r, c) has the
// weights from the gates of unit range c to the outputs of unit range r, leaves its part of those
// sums, and finishes the c-th share of range r when the other blocks of its row have left theirs.
#pragma once

#include "persistent.cuh"
#include "tasks.cuh"

namespace fastrnn::cuda {

template <class F>
struct BackwardShape {
  using Storage = typename F::Storage;
  using Value = typename F::Value;
  using T = Tile<F, 2>;
  int units, splits;   // outputs that a block finishes; unit ranges of the gates
  int range;           // units of such a range
  int columns, gates;  // sequences of a block; gates of a unit
  int held;            // of the length, in registers

  FASTRNN_HD int outputs() const { return units * splits; }
  FASTRNN_HD int pairs() const { return (outputs() + T::kRows - 1) / T::kRows; }
  FASTRNN_HD int weights_pitch() const { return pairs() * T::kRows + T::kVector; }
  FASTRNN_HD int length() const { return (gates * range + T::kChunk - 1) / T::kChunk * T::kChunk; }
  FASTRNN_HD int pitch() const { return length() + T::kVector; }
  FASTRNN_HD int64_t weights() const { return int64_t(length() - held) * weights_pitch(); }
  FASTRNN_HD int64_t register_bytes() const {
    return int64_t(pairs()) * T::kRows * held * int64_t(sizeof(Storage));
  }
  FASTRNN_HD int64_t operand() const { return int64_t(columns) * pitch(); }
  FASTRNN_HD int64_t partial() const { return int64_t(kParts) * columns * T::kPitch; }
  FASTRNN_HD int64_t weight_bytes() const { return weights() * int64_t(sizeof(Storage)); }
  FASTRNN_HD int64_t bytes() const {
    return (weights() + operand()) * int64_t(sizeof(Storage)) +
           pairs() * partial() * int64_t(sizeof(Value));
  }
};

template <class C, class F>
struct PersistentBackward {
  using Format = F;
  using Storage = typename F::Storage;
  using Value = typename F::Value;
  using T = Tile<F, 2>;

  BackwardCell<C, F> cell;
  BackwardShape<F> shape;
  const Storage* weights[2];
  Carried<F> carried;
  Value* sums;      // [D,row_blocks,ranges,splits,columns,outputs] parts of sums
  unsigned* flags;  // [D,row_blocks,1 + ranges], kFlagPitch apart; zeros
  int ranges, row_blocks;

  FASTRNN_DEVICE int blocks() const { return ranges * shape.splits; }
  FASTRNN_DEVICE unsigned* flag(int d, int index) const {
    return flags + ((d * row_blocks + block_y()) * (1 + ranges) + index) * kFlagPitch;
  }
  // The part of the sums that block (r, c) leaves.
  FASTRNN_DEVICE Value* part(int d, int r, int c) const {
    const int64_t group = int64_t(d) * row_blocks + block_y();
    return sums + ((group * ranges + r) * shape.splits + c) * shape.columns * shape.outputs();
  }

  // The weights from the gate of number k to all outputs; null: there is none, zeros.
  FASTRNN_DEVICE const Storage* weights_of(int d, int c, int k) const {
    const int gate = k / shape.range, unit = c * shape.range + k % shape.range;
    return gate < C::kRh && unit < cell.H
               ? weights[d] + (static_cast<int64_t>(gate) * cell.H + unit) * cell.H
               : nullptr;
  }
  FASTRNN_DEVICE void load_weights(Storage* to, int d, int r, int c) const {
    const int across = shape.pairs() * T::kRows / T::kVector;
    for (int i = thread_index(); i < (shape.length() - shape.held) * across;
         i += kPersistentThreads) {
      const int row = i / across, v = i % across * T::kVector, u = r * shape.outputs() + v;
      const Storage* from = weights_of(d, c, shape.held + row);
      const bool inside = from && v < shape.outputs() && u < cell.H;
      copy16(to + row * shape.weights_pitch() + v, from + (inside ? u : 0),
             inside ? cell.H - u : 0);
    }
    cp_async_commit();
  }
  template <int kTiles>
  FASTRNN_DEVICE void hold(Held<F, kTiles>& held, int d, int r, int c) const {
    const int row = held_row<kTiles>() + thread_index() % 32 / 4;
    FASTRNN_ROLLED
    for (int i = 0; i < Held<F, kTiles>::kChunks; ++i) {
      held.shift();
      for (int tile = 0; tile < kTiles; ++tile)
        held.last()[tile] = F::hold([&](int half, int k) {
          const int output = row + tile * 16 + half * 8, u = r * shape.outputs() + output;
          const Storage* from = weights_of(d, c, held_step<F>(i) + k);
          return from && output < shape.outputs() && u < cell.H ? from[u] : Storage{};
        });
    }
  }
  // The gates' gradients that reach step t; of t < 0, those of each sequence's first step.
  FASTRNN_DEVICE const Storage* operand_of(int d, int t, int b) const {
    if (b >= cell.time.B) return nullptr;
    return t >= 0 ? cell.operand(d, t, b) : cell.gates(d, cell.time.first(d, b), b);
  }
  FASTRNN_DEVICE void load_operand(Storage* to, int d, int t, int b0, int c) const {
    const int across = shape.length() / T::kVector;
    for (int i = thread_index(); i < shape.columns * across; i += kPersistentThreads) {
      const int b = i / across, k = i % across * T::kVector;
      const int gate = k / shape.range, unit = c * shape.range + k % shape.range;
      const bool inside = gate < C::kRh && unit < cell.H;
      const Storage* from = inside ? operand_of(d, t, b0 + b) : nullptr;
      copy16(to + b * shape.pitch() + k,
             from ? from + static_cast<int64_t>(gate) * cell.H + unit : from,
             from ? cell.H - unit : 0);
    }
    cp_async_commit();
  }
  FASTRNN_DEVICE Value block_sum(const Value* partial, int output, int column) const {
    return T::total(0, partial + output / T::kRows * shape.partial(), shape.columns, column,
                    output % T::kRows);
  }
  // This block's part of the sums, for the other blocks of its row.
  FASTRNN_DEVICE void leave(int d, int r, int c, const Value* partial) const {
    Value* to = part(d, r, c);
    for (int i = thread_index(); i < shape.outputs() * shape.columns; i += kPersistentThreads)
      to[i] = block_sum(partial, i % shape.outputs(), i / shape.outputs());
  }
  FASTRNN_DEVICE Value whole_sum(int d, int r, int output, int column, const Value* partial) const {
    if (shape.splits == 1) return block_sum(partial, output, column);
    Value sum = 0;
    for (int c = 0; c < shape.splits; ++c)
      sum = sum + part(d, r, c)[column * shape.outputs() + output];
    return sum;
  }
  FASTRNN_DEVICE void finish(int d, int t, int b0, int r, int c, const Value* partial) const {
    for (int i = thread_index(); i < shape.units * shape.columns; i += kPersistentThreads) {
      const int output = c * shape.units + i % shape.units, u = r * shape.outputs() + output;
      const int column = i / shape.units, b = b0 + column;
      if (u >= cell.H || b >= (t < 0 ? cell.time.B : cell.time.alive(t))) continue;
      const Value sum = whole_sum(d, r, output, column, partial);
      const int64_t unit = cell.unit(d, b, u);
      const Value direct = C::kHoldsOutput ? carried.direct[unit] : Value(0);
      if (t < 0)
        cell.dh0[unit] = narrow<Storage>(sum + direct);
      else
        cell.finish(d, t, b, u, cell.total(d, t, b, u, sum, direct),
                    carried.direct + (C::kHoldsOutput ? unit : 0),
                    carried.states + (C::kState > 1 ? unit : 0));
    }
  }
};

template <class Task, int kHeldTiles>
FASTRNN_KERNEL(kPersistentThreads, 1)
persistent_backward(const Task task) {
  using Format = typename Task::Format;
  using Storage = typename Task::Storage;
  using Value = typename Task::Value;
  const Timeline& time = task.cell.time;
  const int d = block_z(), b0 = block_y() * task.shape.columns, splits = task.shape.splits;
  const int r = block_x() / splits, c = block_x() % splits;
  auto* weights = static_cast<Storage*>(static_cast<void*>(dynamic_shared()));
  Storage* operand = weights + task.shape.weights();
  auto* partial = static_cast<Value*>(static_cast<void*>(operand + task.shape.operand()));

  Held<Format, kHeldTiles> held = {};
  if constexpr (kHeldTiles > 0) task.hold(held, d, r, c);
  task.load_weights(weights, d, r, c);
  const int start = time.reversed(d) ? time.T - 1 : time.last(b0);
  int passed = 0;
  for (int step = start; step >= (task.cell.dh0 ? -1 : 0); --step) {
    int t = step < 0 ? -1 : time.time(d, step);
    if (t >= 0 && time.alive(t) <= b0) {  // and so for all earlier steps: a reversed direction
      if (!task.cell.dh0) break;
      t = step = -1;
    }
    wait_for(task.flag(d, 0), passed * task.blocks());
    task.load_operand(operand, d, t, b0, c);
    cp_async_wait<0>();
    block_barrier();
    if constexpr (kHeldTiles > 0)
      multiply<Format, true>(held, weights, task.shape.weights_pitch(), operand, task.shape.columns,
                             task.shape.length(), partial);
    else
      multiply<Format, true>(weights, task.shape.weights_pitch(), task.shape.pairs(), operand,
                             task.shape.columns, task.shape.length(), partial);
    block_barrier();
    if (splits > 1) {
      task.leave(d, r, c, partial);
      arrive(task.flag(d, 1 + r));
      if (!FASTRNN_PLANTED(kUnsynchronised)) wait_for(task.flag(d, 1 + r), (passed + 1) * splits);
    }
    task.finish(d, t, b0, r, c, partial);
    arrive(task.flag(d, 0));
    ++passed;
  }
  cp_async_wait<0>();
}

}  // namespace fastrnn::cuda
