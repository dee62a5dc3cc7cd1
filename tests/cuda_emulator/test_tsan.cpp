// Small cases for ThreadSanitizer, which takes each CUDA thread for a thread: only declared
// synchronisation orders accesses, whatever the schedule.
#include "compare.h"

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
  return finish("test_tsan");
}
