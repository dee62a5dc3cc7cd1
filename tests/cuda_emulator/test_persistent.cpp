// The persistent kernels against the scalar reference: every cell, type and direction, packed
// batches, odd sizes, absent buffers, four schedules. And against the step kernels: the same bits.
#include "compare.h"

namespace {

using namespace test;

double worst = 0;
int exchanging = 0;  // cases of several blocks that exchange h
int projecting = 0;  // ... and what a projection reads
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
    const bool several = plan(false).unit_blocks > 1;
    if (c.setup.problem.P)
      projecting += several;
    else
      exchanging += several, splitting += plan(true).splits > 1;
  }
}

struct Places {
  int two = 0, four = 0;  // passes with so many tiles of a warp in registers
  int both = 0;           // passes with weights in registers and in shared memory
} places;

void count_places(const Problem& p, bool tf32) {
  for (bool backward : {false, true}) {
    const gpu::Plan plan = gpu::plan(p, device(), backward, tf32, gpu::Kernel::kPersistent);
    places.two += plan.register_tiles == 2, places.four += plan.register_tiles == 4;
    places.both += plan.register_bytes > 0 && plan.weight_bytes > 0;
  }
}

// Sizes of which the multiprocessors must hold more than their shared memory.
template <class T>
void in_registers(Cell cell, bool tf32, int64_t H, int multiprocessors) {
  const emulator::Settings before = emulator::settings;
  Case c;
  c.kernel = gpu::Kernel::kPersistent, c.tf32 = tf32;
  Problem& p = c.setup.problem;
  p.cell = cell, p.H = H, p.T = 3, p.B = 3, p.I = 2, p.dtype = kDtype<T>;
  emulator::settings.multiprocessors = multiprocessors;
  squeeze(p, tf32), count_places(p, tf32);
  std::vector<emulator::Schedule> schedules = {emulator::Schedule::kAhead};
  if (H < 100) schedules.assign(std::begin(emulator::kSchedules), std::end(emulator::kSchedules));
  const auto found = compare<T>(c, 5, worst, schedules);
  emulator::settings = before;
  c.kernel = gpu::Kernel::kStep;
  const auto stepped = compare<T>(c, 5, worst, {emulator::Schedule::kInOrder});
  EXPECT(same_bits(found.y, stepped.y), "step and registers differ, " << describe(c.setup));
}

void register_cases() {
  for (Cell cell : {Cell::kElman, Cell::kLstm, Cell::kGru}) {
    in_registers<float>(cell, true, 67, 3), in_registers<Bfloat16>(cell, false, 68, 5);
    in_registers<Float16>(cell, false, 61, 2);
  }
  in_registers<float>(Cell::kLstm, true, 290, 10);
  in_registers<Bfloat16>(Cell::kElman, false, 1058, 17);
  in_registers<Bfloat16>(Cell::kGru, false, 530, 14);
  EXPECT(places.two > 3 && places.four > 3 && places.both > 2,
         places.two << ' ' << places.four << ' ' << places.both << " passes with registers");
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
  register_cases();
  EXPECT(splitting > 20 || quick(), splitting << " cases with blocks that add parts of sums");
  EXPECT(projecting > 5 || quick(), projecting << " cases with a projection");
  EXPECT(exchanging > 20 || quick(), exchanging << " cases with blocks that exchange h");
  std::printf("largest error: %.2f of what is tolerated\n", worst);
  return finish("test_persistent");
}
