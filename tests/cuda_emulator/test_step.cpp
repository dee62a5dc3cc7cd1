// The step kernels against the scalar reference: every cell, type and direction, packed batches,
// odd sizes, absent buffers, four schedules.
#include "compare.h"

namespace {

using namespace test;

double worst = 0;

template <class T>
void random_cases(Cell cell, bool tf32, int count) {
  Random random(300 + uint64_t(cell) * 10 + uint64_t(tf32));
  for (int i = 0; i < count; ++i) {
    Case c = draw(random, cell, gpu::Kernel::kStep);
    c.tf32 = tf32;
    std::vector<emulator::Schedule> schedules = {emulator::kSchedules[i % 4]};
    if (c.setup.problem.T * c.setup.problem.B < 40)
      schedules.assign(std::begin(emulator::kSchedules), std::end(emulator::kSchedules));
    compare<T>(c, random.bits(), worst, schedules);
  }
}

}  // namespace

int main() {
  const int count = quick() ? 2 : 8;
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
    random_cases<float>(cell, false, count);
    random_cases<float>(cell, true, count);
    random_cases<double>(cell, false, count);
    random_cases<Bfloat16>(cell, false, count);
    random_cases<Float16>(cell, false, count);
  }
  std::printf("largest error: %.2f of what is tolerated\n", worst);
  return finish("test_step");
}
