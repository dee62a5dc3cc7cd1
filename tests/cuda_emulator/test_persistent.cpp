// The persistent kernels against the scalar reference: every cell, type and direction, packed
// batches, odd sizes, absent buffers, four schedules. And against the step kernels: the same bits.
#include "compare.h"

namespace {

using namespace test;

double worst = 0;
int exchanging = 0;  // cases of several blocks that exchange h
int splitting = 0;   // cases of several blocks that add up a backward product

template <class T>
void random_cases(Cell cell, bool tf32, int count) {
  Random random(300 + uint64_t(cell) * 10 + uint64_t(tf32));
  for (int i = 0; i < count; ++i) {
    Case c = draw(random, cell, gpu::Kernel::kPersistent);
    c.tf32 = tf32;
    std::vector<emulator::Schedule> schedules = {emulator::kSchedules[i % 4]};
    if (c.setup.problem.T * c.setup.problem.B < 40)
      schedules.assign(std::begin(emulator::kSchedules), std::end(emulator::kSchedules));
    waiting_is_free = i % 2;
    const uint64_t seed = random.bits();
    const auto found = compare<T>(c, seed, worst, schedules);
    c.kernel = gpu::Kernel::kStep;
    const auto stepped = compare<T>(c, seed, worst, {emulator::Schedule::kInOrder});
    EXPECT(same_bits(found.y, stepped.y), "step and persistent differ, " << describe(c.setup));
    c.setup.problem.dtype = kDtype<T>;
    const auto plan = [&](bool backward) {
      return gpu::plan(c.setup.problem, device(), backward, tf32, gpu::Kernel::kPersistent);
    };
    exchanging += plan(false).unit_blocks > 1, splitting += plan(true).splits > 1;
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
  EXPECT(splitting > 20 || quick(), splitting << " cases with blocks that add parts of sums");
  EXPECT(exchanging > 20 || quick(), exchanging << " cases with blocks that exchange h");
  std::printf("largest error: %.2f of what is tolerated\n", worst);
  return finish("test_persistent");
}
