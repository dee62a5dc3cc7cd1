// A layer as one cooperative launch.
#pragma once

#include "persistent_backward.cuh"
#include "run_step.cuh"

namespace fastrnn::cuda {

template <class C, class F>
PersistentShape<F> forward_shape(const Problem& p, const Plan& plan) {
  return {static_cast<int>(quotient_up(C::kRh * plan.units, Tile<F, 2>::kRows)), plan.rows,
          PersistentShape<F>::rounded(p.H)};
}

template <class C, class F>
struct PersistentWorkspace {
  PersistentWorkspace(const Problem& p, const Plan& plan, void* base) : pieces(base) {
    flags = pieces.take<unsigned>(flag_count(p, plan));
    states = pieces.take<typename F::Value>(C::kState > 1 ? p.directions * p.B * p.H : 0);
    exchange = pieces.take<typename F::Storage>(2 * p.directions * p.B *
                                                forward_shape<C, F>(p, plan).length);
  }
  static int64_t flag_count(const Problem& p, const Plan& plan) {
    return int64_t(p.directions) * plan.row_blocks * kFlagPitch;
  }
  Pieces pieces;
  unsigned* flags;
  typename F::Value* states;
  typename F::Storage* exchange;
};

template <class C, class F>
void persistent_run(const Problem& p, const Plan& plan, const ForwardBuffers& b, Stream stream) {
  using Task = PersistentForward<C, F>;
  const PersistentWorkspace<C, F> workspace(p, plan, b.workspace);
  Task task = {};
  task.cell = forward_cell<C, F>(p, b);
  task.shape = forward_shape<C, F>(p, plan);
  set_weights(task, p, b.w_hh);
  task.exchange = workspace.exchange, task.states = workspace.states;
  task.flags = workspace.flags;
  task.units = plan.units, task.unit_blocks = plan.unit_blocks, task.row_blocks = plan.row_blocks;
  const auto flag_bytes =
      static_cast<size_t>(PersistentWorkspace<C, F>::flag_count(p, plan)) * sizeof(unsigned);
  check_launch(clear(workspace.flags, flag_bytes, stream), "persistent: flags");
  check_launch(launch(persistent_forward<Task>, plan.unit_blocks, plan.row_blocks, p.directions,
                      kPersistentThreads, task.shape.bytes(), true, stream, task),
               "persistent");
}

template <class C, class F>
BackwardShape<F> backward_shape(const Problem& p, const Plan& plan) {
  constexpr int kVectors = 8;  // a range holds whole blocks of 16 bytes
  const auto range = quotient_up(quotient_up(p.H, plan.splits), kVectors) * kVectors;
  return {plan.units, plan.splits, static_cast<int>(range), plan.rows, C::kRh};
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
  check_launch(launch(persistent_backward<Task>, plan.unit_blocks, plan.row_blocks, p.directions,
                      kPersistentThreads, task.shape.bytes(), true, stream, task),
               "persistent backward");
}

}  // namespace fastrnn::cuda
