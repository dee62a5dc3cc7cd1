// A layer as one cooperative launch.
#pragma once

#include <algorithm>

#include "persistent_backward.cuh"
#include "persistent_projected.cuh"
#include "run_step.cuh"

namespace fastrnn::cuda {

// Of a sum of `length` numbers, those whose weights are in registers.
template <class F>
int held_of(const Plan& plan, int length) {
  return plan.register_tiles
             ? std::min(length, held_chunks(plan.register_tiles) * Tile<F, 2>::kChunk)
             : 0;
}

template <class C, class F>
PersistentShape<F> forward_shape(const Problem& p, const Plan& plan) {
  const int length = PersistentShape<F>::rounded(p.H);
  return {static_cast<int>(quotient_up(C::kRh * plan.units, Tile<F, 2>::kRows)), plan.rows, length,
          held_of<F>(plan, length)};
}

// `kernels` by the tiles that a warp holds: none, two or four.
template <class Task>
int launch_persistent(void (*(&kernels)[3])(Task), const Problem& p, const Plan& plan,
                      Stream stream, const Task& task) {
  return launch(kernels[plan.register_tiles / 2], plan.unit_blocks, plan.row_blocks, p.directions,
                kPersistentThreads, task.shape.bytes(), true, stream, task);
}

// Its shape; the rest of the task is empty.
template <class C, class F>
PersistentProjected<C, F> projected_task(const Problem& p, const Plan& plan) {
  using Shape = PersistentShape<F>;
  const auto pairs = [](int64_t rows) {
    return static_cast<int>(quotient_up(rows, Tile<F, 2>::kRows));
  };
  PersistentProjected<C, F> task = {};
  task.units = plan.units, task.unit_blocks = plan.unit_blocks, task.row_blocks = plan.row_blocks;
  task.outputs_of_block = static_cast<int>(quotient_up(p.P, plan.unit_blocks));
  task.gates = {pairs(C::kRh * plan.units), plan.rows, Shape::rounded(p.P), 0};
  task.outputs = {pairs(task.outputs_of_block), plan.rows, Shape::rounded(p.H), 0};
  return task;
}

template <class C, class F>
struct PersistentWorkspace {
  PersistentWorkspace(const Problem& p, const Plan& plan, void* base) : pieces(base) {
    flags = pieces.take<unsigned>(flag_count(p, plan));
    states = pieces.take<typename F::Value>(C::kState > 1 ? p.directions * p.B * p.H : 0);
    const int64_t rows = p.directions * p.B;
    exchange = pieces.take<typename F::Storage>(
        p.P ? rows * p.H : 2 * rows * forward_shape<C, F>(p, plan).length);
  }
  static int64_t flag_count(const Problem& p, const Plan& plan) {
    return int64_t(p.directions) * plan.row_blocks * kFlagPitch;
  }
  void clear_flags(const Problem& p, const Plan& plan, Stream stream) const {
    const auto bytes = static_cast<size_t>(flag_count(p, plan)) * sizeof(unsigned);
    check_launch(clear(flags, bytes, stream), "persistent: flags");
  }
  Pieces pieces;
  unsigned* flags;
  typename F::Value* states;
  typename F::Storage* exchange;  // h, twice; with a projection what goes into it
};

template <class C, class F>
void persistent_run_projected(const Problem& p, const Plan& plan, const ForwardBuffers& b,
                              Stream stream) {
  const PersistentWorkspace<C, F> workspace(p, plan, b.workspace);
  PersistentProjected<C, F> task = projected_task<C, F>(p, plan);
  task.cell = forward_cell<C, F>(p, b);
  task.cell.full = workspace.exchange;
  set_weights(task, p, b.w_hh);
  for (int d = 0; d < p.directions; ++d)
    task.projection[d] = static_cast<const typename F::Storage*>(b.w_hr[d]);
  task.states = workspace.states, task.flags = workspace.flags;
  workspace.clear_flags(p, plan, stream);
  check_launch(
      launch(persistent_projected<PersistentProjected<C, F>>, plan.unit_blocks, plan.row_blocks,
             p.directions, kPersistentThreads, task.bytes(), true, stream, task),
      "persistent with a projection");
}

template <class C, class F>
void persistent_run(const Problem& p, const Plan& plan, const ForwardBuffers& b, Stream stream) {
  if constexpr (C::kProjects)
    if (p.P) return persistent_run_projected<C, F>(p, plan, b, stream);
  using Task = PersistentForward<C, F>;
  const PersistentWorkspace<C, F> workspace(p, plan, b.workspace);
  Task task = {};
  task.cell = forward_cell<C, F>(p, b);
  task.shape = forward_shape<C, F>(p, plan);
  set_weights(task, p, b.w_hh);
  task.exchange = workspace.exchange, task.states = workspace.states;
  task.flags = workspace.flags;
  task.units = plan.units, task.unit_blocks = plan.unit_blocks, task.row_blocks = plan.row_blocks;
  workspace.clear_flags(p, plan, stream);
  void (*kernels[3])(Task) = {persistent_forward<Task, 0>};
  if constexpr (F::kHolds)
    kernels[1] = persistent_forward<Task, 2>, kernels[2] = persistent_forward<Task, 4>;
  check_launch(launch_persistent(kernels, p, plan, stream, task), "persistent");
}

template <class C, class F>
BackwardShape<F> backward_shape(const Problem& p, const Plan& plan) {
  constexpr int kVectors = 8;  // a range holds whole blocks of 16 bytes
  const auto range = quotient_up(quotient_up(p.H, plan.splits), kVectors) * kVectors;
  BackwardShape<F> shape = {plan.units, plan.splits, static_cast<int>(range), plan.rows, C::kRh, 0};
  shape.held = held_of<F>(plan, shape.length());
  return shape;
}

template <class C, class F>
struct PersistentBackwardWorkspace {
  PersistentBackwardWorkspace(const Problem& p, const Plan& plan, void* base) : pieces(base) {
    const BackwardShape<F> shape = backward_shape<C, F>(p, plan);
    const int64_t units = p.directions * p.B * p.H;
    const int64_t groups = int64_t(p.directions) * plan.row_blocks;
    flag_count = groups * (1 + plan.unit_blocks / plan.splits) * kFlagPitch;
    flags = pieces.take<unsigned>(flag_count);
    carried.direct = pieces.take<typename F::Value>(C::kHoldsOutput ? units : 0);
    carried.states = pieces.take<typename F::Value>(C::kState > 1 ? units : 0);
    const int64_t sum_count = groups * plan.unit_blocks * shape.columns * shape.outputs();
    sums = pieces.take<typename F::Value>(plan.splits > 1 ? sum_count : 0);
  }
  Pieces pieces;
  int64_t flag_count;
  unsigned* flags;
  Carried<F> carried;
  typename F::Value* sums;
};

template <class C, class F>
void persistent_run_backward(const Problem& p, const Plan& plan, const BackwardBuffers& b,
                             Stream stream) {
  using Task = PersistentBackward<C, F>;
  const PersistentBackwardWorkspace<C, F> workspace(p, plan, b.workspace);
  Task task = {};
  task.cell = backward_cell<C, F>(p, b);
  task.shape = backward_shape<C, F>(p, plan);
  set_weights(task, p, b.w_hh);
  task.carried = workspace.carried, task.sums = workspace.sums, task.flags = workspace.flags;
  task.ranges = plan.unit_blocks / plan.splits, task.row_blocks = plan.row_blocks;
  check_launch(clear(workspace.flags, size_t(workspace.flag_count) * sizeof(unsigned), stream),
               "persistent backward: flags");
  void (*kernels[3])(Task) = {persistent_backward<Task, 0>};
  if constexpr (F::kHolds)
    kernels[1] = persistent_backward<Task, 2>, kernels[2] = persistent_backward<Task, 4>;
  check_launch(launch_persistent(kernels, p, plan, stream, task), "persistent backward");
}

}  // namespace fastrnn::cuda
