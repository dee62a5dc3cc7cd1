// One launch, one step: a product of all sequences with a weight matrix, and what follows from it.
// Any size. A task says which rows are multiplied by which weights and what becomes of the sums:
//
//   kGates, kUnits   sums of a unit, and units of a block; kGates * kUnits <= 16 * kTiles
//   kTransposed      sum u runs over weights[k][u], else over weights[gate * width + u][k]
//   width(), length()  units in all; numbers in a sum
//   operand(d, b)    the row of sequence b, null: zeros
//   start(d, g, u)   what the sum begins with
//   alive(d, b), finish(d, b, u, sums)
#pragma once

#include "sequence.cuh"
#include "tile.cuh"

namespace fastrnn::cuda {

constexpr int kStages = 3;
constexpr int kMostRows = 32;  // sequences of a block

template <class Task>
struct StepTile : Tile<typename Task::Format, Task::kTiles> {
  using Base = Tile<typename Task::Format, Task::kTiles>;
  using Base::kChunk, Base::kRows, Base::kVector;
  using typename Base::Storage;
  using typename Base::Value;

  static constexpr int kPitch = kChunk + kVector;  // of a row of k in shared memory
  static constexpr int kWeightsPitch = Task::kTransposed ? kRows + kVector : kPitch;
  static constexpr int kWeights = (Task::kTransposed ? kChunk : kRows) * kWeightsPitch;

  FASTRNN_HD static int stage(int rows) { return kWeights + rows * kPitch; }
  static int64_t shared_bytes(int rows) {
    const int64_t stages = int64_t(kStages) * stage(rows) * int64_t(sizeof(Storage));
    const int64_t partial = int64_t(kParts) * rows * Base::kPitch * int64_t(sizeof(Value));
    return stages > partial ? stages : partial;
  }

  // This thread's part of chunk `k0`: 16-byte blocks of weights and of its operand's row.
  static FASTRNN_DEVICE void load(const Task& task, int d, int u0, int rows, int k0,
                                  const Storage* operand, Storage* stage) {
    const int length = task.length(), width = task.width(), threads = rows * 8;
    const Storage* weights = task.weights[d];
    constexpr int kAcross = (Task::kTransposed ? kRows : kChunk) / kVector;
    for (int i = thread_index(); i < (Task::kTransposed ? kChunk : kRows) * kAcross; i += threads) {
      const int row = i / kAcross, v = i % kAcross * kVector;
      Storage* to = stage + row * kWeightsPitch + v;
      if constexpr (Task::kTransposed) {
        const int k = k0 + row, u = u0 + v;
        const bool inside = k < length && u < width;
        copy16(to, weights + static_cast<int64_t>(k) * width + u, inside ? width - u : 0);
      } else {
        const int gate = row / Task::kUnits, u = u0 + row % Task::kUnits, k = k0 + v;
        const bool inside = gate < Task::kGates && u < width && k < length;
        copy16(to, weights + (static_cast<int64_t>(gate) * width + u) * length + k,
               inside ? length - k : 0);
      }
    }
    Storage* to = stage + kWeights + thread_index() / 8 * kPitch;
    for (int v = thread_index() % 8 * kVector; v < kChunk; v += 8 * kVector)
      copy16(to + v, operand ? operand + k0 + v : operand,
             operand && k0 + v < length ? length - k0 - v : 0);
  }

  // Adds all chunks, as they come through the stages, to this warp's sums. `operand` is the row of
  // the sequence that this thread copies.
  static FASTRNN_DEVICE void product(const Task& task, int d, int u0, int rows,
                                     const Storage* operand, Storage* stages,
                                     Value (&sums)[Task::kTiles][2][4]) {
    const int chunks = (task.length() + kChunk - 1) / kChunk, size = stage(rows);
    for (int c = 0; c < kStages - 1; ++c) {
      if (c < chunks) load(task, d, u0, rows, c * kChunk, operand, stages + c * size);
      cp_async_commit();
    }
    const int warp = thread_index() / 32, part = warp % kParts, column = warp / kParts * 16;
    for (int c = 0; c < chunks; ++c) {
      if (FASTRNN_PLANTED(kWaitCount))
        cp_async_wait<kStages - 1>();
      else
        cp_async_wait<kStages - 2>();
      if (!FASTRNN_PLANTED(kMissingBarrier)) block_barrier();
      const int next = c + kStages - 1;
      if (next < chunks)
        load(task, d, u0, rows, next * kChunk, operand, stages + next % kStages * size);
      cp_async_commit();
      const Storage* from = stages + c % kStages * size;
      Base::template add<Task::kTransposed>(sums, from, kWeightsPitch,
                                            from + kWeights + column * kPitch, kPitch, part);
    }
  }
};

template <class Task>
FASTRNN_KERNEL(kMostRows * 8, 2)
step_kernel(const Task task) {
  using T = StepTile<Task>;
  using Storage = typename T::Storage;
  using Value = typename T::Value;
  const int d = block_z(), u0 = block_x() * Task::kUnits, rows = task.rows;
  const int b0 = block_y() * rows, threads = rows * 8;
  if (!task.alive(d, b0)) return;  // sequences are sorted by length

  auto* stages = static_cast<Storage*>(static_cast<void*>(dynamic_shared()));
  const int warp = thread_index() / 32, part = warp % kParts, column = warp / kParts * 16;
  Value sums[Task::kTiles][2][4] = {};
  T::product(task, d, u0, rows, task.operand(d, b0 + thread_index() / 8), stages, sums);
  cp_async_wait<0>();
  block_barrier();  // the stages become the partial sums
  auto* partial = static_cast<Value*>(static_cast<void*>(dynamic_shared()));
  T::leave(sums, partial, rows, part, column);
  if (!FASTRNN_PLANTED(kDivergentBarrier) || thread_index() < 32) block_barrier();

  for (int i = thread_index(); i < Task::kUnits * rows; i += threads) {
    const int u = u0 + i % Task::kUnits, b = i / Task::kUnits;
    if (u >= task.width() + FASTRNN_PLANTED(kPastTheEnd) || !task.alive(d, b0 + b)) continue;
    Value totals[Task::kGates];
    for (int g = 0; g < Task::kGates; ++g)
      totals[g] = T::total(task.start(d, g, u), partial, rows, b, g * Task::kUnits + u - u0);
    task.finish(d, b0 + b, u, totals);
  }
}

}  // namespace fastrnn::cuda
