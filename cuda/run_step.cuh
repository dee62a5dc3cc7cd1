// A layer as a row of launches, each a step of all directions.
#pragma once

#include "launch.h"
#include "tasks.cuh"

namespace fastrnn::cuda {

inline Timeline timeline(const Problem& p, const int64_t* offsets) {
  return {p.ragged ? offsets : nullptr, static_cast<int>(p.T), static_cast<int>(p.B), p.reverse};
}

template <class C, class F>
ForwardCell<C, F> forward_cell(const Problem& p, const ForwardBuffers& b) {
  using S = typename F::Storage;
  const auto in = [](const void* v) { return static_cast<const S*>(v); };
  const auto out = [](void* v) { return static_cast<S*>(v); };
  ForwardCell<C, F> c = {};
  c.time = timeline(p, b.offsets);
  c.options.relu = p.activation == Activation::kRelu;
  c.H = static_cast<int>(p.H), c.O = static_cast<int>(p.P ? p.P : p.H), c.D = p.directions;
  c.saved = C::kSaved + (p.P > 0);
  for (int d = 0; d < p.directions; ++d) c.wx[d] = in(b.wx[d]), c.b_hh[d] = in(b.b_hh[d]);
  c.wx_strides = b.wx_strides, c.y_strides = b.y_strides;
  c.h0 = in(b.h0), c.c0 = in(b.c0);
  c.y = out(b.y), c.h_n = out(b.h_n), c.c_n = out(b.c_n);
  c.reserve = p.training && c.saved ? static_cast<typename F::Value*>(b.reserve) : nullptr;
  return c;
}

template <class C, class F>
BackwardCell<C, F> backward_cell(const Problem& p, const BackwardBuffers& b) {
  using S = typename F::Storage;
  const auto in = [](const void* v) { return static_cast<const S*>(v); };
  BackwardCell<C, F> c = {};
  c.time = timeline(p, b.offsets);
  c.options.relu = p.activation == Activation::kRelu;
  c.H = static_cast<int>(p.H), c.O = static_cast<int>(p.P ? p.P : p.H), c.D = p.directions;
  c.saved = C::kSaved + (p.P > 0);
  c.h0 = in(b.h0), c.c0 = in(b.c0), c.y = in(b.y), c.y_strides = b.y_strides;
  c.reserve = static_cast<const typename F::Value*>(b.reserve);
  c.dy = in(b.dy), c.dy_strides = b.dy_strides, c.dh_n = in(b.dh_n), c.dc_n = in(b.dc_n);
  for (int d = 0; d < p.directions; ++d) c.dgates[d] = static_cast<S*>(b.dgates[d]);
  c.dh0 = static_cast<S*>(b.dh0), c.dc0 = static_cast<S*>(b.dc0);
  return c;
}

template <class Task>
void set_weights(Task& task, const Problem& p, const void* const (&weights)[2]) {
  for (int d = 0; d < p.directions; ++d)
    task.weights[d] = static_cast<const typename Task::Storage*>(weights[d]);
}

template <class Task>
void launch_step(const Problem& p, const Task& task, int64_t width, Stream stream) {
  check_launch(launch(step_kernel<Task>, static_cast<int>(quotient_up(width, Task::kUnits)),
                      static_cast<int>(quotient_up(p.B, task.rows)), p.directions, task.rows * 8,
                      StepTile<Task>::shared_bytes(task.rows), false, stream, task),
               "step");
}

template <class C, class F>
struct ForwardWorkspace {
  ForwardWorkspace(const Problem& p, void* base) : pieces(base) {
    const int64_t units = p.directions * p.B * p.H;
    states = pieces.take<typename F::Value>(C::kState > 1 ? units : 0);
    full = pieces.take<typename F::Storage>(p.P ? units : 0);
  }
  Pieces pieces;
  typename F::Value* states;
  typename F::Storage* full;
};

template <class C, class F>
struct BackwardWorkspace {
  BackwardWorkspace(const Problem& p, void* base) : pieces(base) {
    const int64_t units = p.directions * p.B * p.H;
    carried.direct = pieces.take<typename F::Value>(C::kHoldsOutput ? units : 0);
    carried.states = pieces.take<typename F::Value>(C::kState > 1 ? units : 0);
  }
  Pieces pieces;
  Carried<F> carried;
};

template <class C, class F>
void step_forward(const Problem& p, const Plan& plan, const ForwardBuffers& b, Stream stream) {
  const ForwardWorkspace<C, F> workspace(p, b.workspace);
  ForwardGates<C, F> gates = {};
  gates.cell = forward_cell<C, F>(p, b);
  gates.cell.full = workspace.full;
  gates.states = workspace.states, gates.rows = plan.rows;
  set_weights(gates, p, b.w_hh);
  ForwardProjection<C, F> projection = {};
  projection.cell = gates.cell, projection.rows = plan.rows;
  set_weights(projection, p, b.w_hr);
  for (int step = 0; step < p.T; ++step) {
    gates.step = projection.step = step;
    launch_step(p, gates, p.H, stream);
    if constexpr (C::kProjects)
      if (p.P) launch_step(p, projection, p.P, stream);
  }
}

template <class C, class F>
void step_initial_gradient(const Problem& p, const Plan& plan, const BackwardBuffers& b,
                           const Carried<F>& carried, Stream stream) {
  if (!b.dh0) return;
  InitialGradient<C, F> task = {};
  task.cell = backward_cell<C, F>(p, b), task.rows = plan.rows, task.carried = carried;
  set_weights(task, p, b.w_hh);
  launch_step(p, task, p.P ? p.P : p.H, stream);
}

template <class C, class F>
void step_backward_projected(const Problem& p, const Plan& plan, const BackwardBuffers& b,
                             const Carried<F>& carried, Stream stream) {
  BackwardOutput<C, F> output = {};
  output.cell = backward_cell<C, F>(p, b), output.rows = plan.rows;
  BackwardProjection<C, F> projection = {};
  projection.cell = output.cell, projection.rows = plan.rows, projection.carried = carried;
  for (int d = 0; d < p.directions; ++d)
    output.projected[d] = projection.projected[d] =
        static_cast<typename F::Storage*>(b.dprojected[d]);
  set_weights(output, p, b.w_hh), set_weights(projection, p, b.w_hr);
  for (int step = static_cast<int>(p.T) - 1; step >= 0; --step) {
    output.step = projection.step = step;
    launch_step(p, output, p.P, stream);
    launch_step(p, projection, p.H, stream);
  }
}

template <class C, class F>
void step_backward(const Problem& p, const Plan& plan, const BackwardBuffers& b, Stream stream) {
  const BackwardWorkspace<C, F> workspace(p, b.workspace);
  if constexpr (C::kProjects)
    if (p.P) {
      step_backward_projected<C, F>(p, plan, b, workspace.carried, stream);
      return step_initial_gradient<C, F>(p, plan, b, workspace.carried, stream);
    }
  BackwardChain<C, F> chain = {};
  chain.cell = backward_cell<C, F>(p, b), chain.rows = plan.rows;
  chain.carried = workspace.carried;
  set_weights(chain, p, b.w_hh);
  for (int step = static_cast<int>(p.T) - 1; step >= 0; --step) {
    chain.step = step;
    launch_step(p, chain, p.H, stream);
  }
  step_initial_gradient<C, F>(p, plan, b, workspace.carried, stream);
}

}  // namespace fastrnn::cuda
