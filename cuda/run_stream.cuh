// A stack of layers as one launch for each time step.
#pragma once

#include "launch.h"
#include "stream.cuh"

namespace fastrnn::cuda {

template <class C, class F>
void stream_run(const Problem& p, const Plan& plan, const StreamBuffers& b, Stream stream) {
  using Task = StreamTask<C, F>;
  using S = typename F::Storage;
  const StreamState state(p, plan.layers, b.state);
  Task task = {};
  const auto in = [](const void* v) { return static_cast<const S*>(v); };
  for (int l = 0; l < plan.layers; ++l) {
    const Weights& w = b.weights[l];
    task.layers[l] = {in(w.w_ih), in(w.w_hh), in(w.b_ih), in(w.b_hh), in(w.w_hr)};
  }
  task.options.relu = p.activation == Activation::kRelu;
  task.count = plan.layers, task.rows = plan.rows, task.blocks = plan.blocks;
  task.B = static_cast<int>(p.B), task.I = static_cast<int>(p.I), task.H = static_cast<int>(p.H);
  task.O = static_cast<int>(p.P ? p.P : p.H);
  task.x = in(b.x), task.x_row = b.x_row;
  task.y = static_cast<S*>(b.y), task.y_row = b.y_row;
  task.arrivals = state.arrivals;
  task.h = static_cast<S*>(state.h), task.full = static_cast<S*>(state.full);
  task.c = static_cast<typename F::Value*>(state.c);
  check_launch(launch(stream_kernel<Task>, plan.blocks, 1, 1, plan.threads,
                      StreamBlock<Task>::shared_bytes(plan.rows), plan.blocks > 1, stream, task),
               "stream");
}

}  // namespace fastrnn::cuda
