// Small cases for ThreadSanitizer, which takes each CUDA thread for a thread: only declared
// synchronisation orders accesses, whatever the schedule.
#include "stream.h"

int main() {
  using namespace test;
  double worst = 0;
  waiting_is_free = true;  // several blocks, which exchange h and parts of sums
  emulator::settings.multiprocessors = 4;
  const std::vector<emulator::Schedule> schedules = {emulator::Schedule::kRandom};
  for (gpu::Kernel kernel : {gpu::Kernel::kStep, gpu::Kernel::kPersistent}) {
    for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
      Case c;
      c.kernel = kernel;
      Problem& p = c.setup.problem;
      p.cell = cell, p.H = 40, p.T = 2, p.B = 3, p.I = 2, p.directions = 1;
      compare<float>(c, 1, worst, schedules);
      p.H = 33, p.directions = 2, p.ragged = true, c.setup.lengths = {2, 1, 1};
      compare<Bfloat16>(c, 2, worst, schedules);
    }
  }
  Case c;  // weights in registers
  c.kernel = gpu::Kernel::kPersistent;
  Problem& p = c.setup.problem;
  p.cell = Cell::kLstm, p.H = 33, p.T = 2, p.B = 3, p.I = 2, p.dtype = kDtype<Bfloat16>;
  emulator::settings.multiprocessors = 3;
  const int64_t shared = emulator::settings.shared_per_block;
  squeeze(p, false);
  EXPECT(gpu::plan(p, device(), false, false, c.kernel).register_bytes > 0, "in registers");
  compare<Bfloat16>(c, 4, worst, schedules);
  emulator::settings.shared_per_block = shared;
  p.P = 17;  // a persistent forward pass with a projection
  compare<Bfloat16>(c, 5, worst, schedules);
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
    StreamCase stack;  // blocks with several tiles
    stack.layers = 2;
    Problem& layer = stack.setup.problem;
    layer.cell = cell, layer.H = 40, layer.T = 2, layer.B = 3, layer.I = 5;
    if (cell == Cell::kLstm) layer.P = 33;
    compare_stream<Bfloat16>(stack, 3, worst, schedules);
  }
  return finish("test_tsan");
}
