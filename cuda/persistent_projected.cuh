// The forward pass of a whole sequence with a projection, in one cooperative launch: each block
// keeps its units' rows of W_hh and its outputs' rows of W_hr in shared memory. A step has two
// products and so two waits: for h(t-1), then for the outputs before the projection. Who writes one
// of them has waited for the other, and with it for everybody who read what it overwrites.
#pragma once

#include "persistent.cuh"

namespace fastrnn::cuda {

template <class C, class F>
struct PersistentProjected {
  using Storage = typename F::Storage;
  using Value = typename F::Value;
  using Shape = PersistentShape<F>;
  using T = Tile<F, 2>;

  ForwardCell<C, F> cell;
  Shape gates, outputs;  // of the two products
  const Storage* weights[2];
  const Storage* projection[2];
  Value* states;    // [D,B,H]
  unsigned* flags;  // [D,row_blocks], kFlagPitch apart; zeros
  int units, outputs_of_block, unit_blocks, row_blocks;

  FASTRNN_HD int64_t operand() const {
    return outputs.operand() > gates.operand() ? outputs.operand() : gates.operand();
  }
  FASTRNN_HD int64_t bytes() const {
    const int pairs = gates.pairs > outputs.pairs ? gates.pairs : outputs.pairs;
    return weight_bytes() + operand() * int64_t(sizeof(Storage)) +
           pairs * gates.partial() * int64_t(sizeof(Value));
  }
  FASTRNN_HD int64_t weight_bytes() const { return gates.weight_bytes() + outputs.weight_bytes(); }

  // The rows of this block; null: there is none, zeros.
  FASTRNN_DEVICE const Storage* gate_row(int d, int row) const {
    const int gate = row / units, u = block_x() * units + row % units;
    return gate < C::kRh && u < cell.H
               ? weights[d] + (static_cast<int64_t>(gate) * cell.H + u) * cell.O
               : nullptr;
  }
  FASTRNN_DEVICE const Storage* output_row(int d, int row) const {
    const int o = block_x() * outputs_of_block + row;
    return row < outputs_of_block && o < cell.O ? projection[d] + static_cast<int64_t>(o) * cell.H
                                                : nullptr;
  }
  FASTRNN_DEVICE const Storage* unprojected(int d, int t, int b) const {
    return b < cell.time.alive(t) ? cell.full + unit(d, b, 0) : nullptr;
  }
  FASTRNN_DEVICE int64_t unit(int d, int b, int u) const {
    return (static_cast<int64_t>(d) * cell.time.B + b) * cell.H + u;
  }

  FASTRNN_DEVICE void finish_gates(int d, int t, int b0, const Value* partial) const {
    for (int i = thread_index(); i < units * gates.columns; i += kPersistentThreads) {
      const int u = block_x() * units + i % units, column = i / units, b = b0 + column;
      if (u >= cell.H || b >= cell.time.alive(t)) continue;
      Value sums[C::kRh];
      for (int g = 0; g < C::kRh; ++g)
        sums[g] = row_sum(cell.bias(d, g, u), gates, partial, g * units + i % units, column);
      cell.finish(d, t, b, u, sums, states + (C::kState > 1 ? unit(d, b, u) : 0));
    }
  }
  FASTRNN_DEVICE void finish_outputs(int d, int t, int b0, const Value* partial) const {
    for (int i = thread_index(); i < outputs_of_block * outputs.columns; i += kPersistentThreads) {
      const int row = i % outputs_of_block, o = block_x() * outputs_of_block + row;
      const int column = i / outputs_of_block, b = b0 + column;
      if (o >= cell.O || b >= cell.time.alive(t)) continue;
      cell.put(d, t, b, o, narrow<Storage>(row_sum(0, outputs, partial, row, column)));
    }
  }
};

template <class Task>
FASTRNN_KERNEL(kPersistentThreads, 1)
persistent_projected(const Task task) {
  using Storage = typename Task::Storage;
  using Value = typename Task::Value;
  const Timeline& time = task.cell.time;
  const int d = block_z(), b0 = block_y() * task.gates.columns;
  auto* weights = static_cast<Storage*>(static_cast<void*>(dynamic_shared()));
  Storage* projection = weights + task.gates.weights();
  Storage* operand = projection + task.outputs.weights();
  auto* partial = static_cast<Value*>(static_cast<void*>(operand + task.operand()));
  unsigned* flag = task.flags + (d * task.row_blocks + block_y()) * kFlagPitch;

  load_rows(task.gates, weights, task.cell.O, [&](int row) { return task.gate_row(d, row); });
  load_rows(task.outputs, projection, task.cell.H,
            [&](int row) { return task.output_row(d, row); });
  int arrivals = 0;
  const int first = time.reversed(d) ? time.T - 1 - time.last(b0) : 0;
  for (int step = first; step < time.T; ++step) {
    const int t = time.time(d, step);
    if (time.alive(t) <= b0) break;  // and so for all later steps: this is direction 0
    wait_for(flag, arrivals);
    load_columns(task.gates, operand, task.cell.O,
                 [&](int b) { return task.cell.operand(d, t, b0 + b); });
    multiply_block(task.gates, weights, operand, partial);
    task.finish_gates(d, t, b0, partial);
    arrive(flag);
    wait_for(flag, arrivals += task.unit_blocks);
    load_columns(task.outputs, operand, task.cell.H,
                 [&](int b) { return task.unprojected(d, t, b0 + b); });
    multiply_block(task.outputs, projection, operand, partial);
    task.finish_outputs(d, t, b0, partial);
    arrive(flag);
    arrivals += task.unit_blocks;
  }
  cp_async_wait<0>();
}

}  // namespace fastrnn::cuda
