// The stream kernel against the scalar reference: every cell and type, stacks, projections, odd
// sizes, absent biases and states, from one block to as many as there are tiles, four schedules.
#include "stream.h"

namespace {

using namespace test;

double worst = 0;
int waiting = 0;  // cases of several blocks, which wait for one another

StreamCase draw_stream(Random& random, Cell cell) {
  StreamCase c;
  Problem& p = c.setup.problem;
  p = draw(random, cell, gpu::Kernel::kStep).setup.problem;
  p.directions = 1, p.reverse = false, p.ragged = false;
  p.I = random.pick(std::vector<int64_t>{1, 3, 8, 31, 72});
  c.layers = 1 + int(random.below(3));
  c.setup.given.h0 = random.coin(), c.setup.given.c0 = random.coin();
  return c;
}

template <class T>
void random_cases(Cell cell, bool tf32, int count) {
  Random random(700 + uint64_t(cell) * 10 + uint64_t(tf32));
  for (int i = 0; i < count; ++i) {
    StreamCase c = draw_stream(random, cell);
    c.tf32 = tf32;
    waiting_is_free = i % 4 > 0;
    emulator::settings.multiprocessors = i % 4 == 1 ? 3 : 132;  // blocks with several tiles
    std::vector<emulator::Schedule> schedules = {emulator::kSchedules[i % 4]};
    if (c.setup.problem.T * c.setup.problem.B < 20)
      schedules.assign(std::begin(emulator::kSchedules), std::end(emulator::kSchedules));
    waiting += compare_stream<T>(c, random.bits(), worst, schedules) > 1;
  }
}

void refusals() {
  Problem p;
  p.H = 8;
  const auto refused = [&](int layers) {
    try {
      gpu::stream_plan(p, layers, device(), false);
    } catch (const std::invalid_argument&) {
      return true;
    }
    return false;
  };
  EXPECT(refused(0) && refused(gpu::kMostStreamLayers + 1), "layers");
  EXPECT(!refused(gpu::kMostStreamLayers), "the most layers");
  p.directions = 2;
  EXPECT(refused(1), "two directions");
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
  refusals();
  EXPECT(waiting > 20 || quick(), waiting << " cases with blocks that wait for one another");
  std::printf("largest error: %.2f of what is tolerated\n", worst);
  return finish("test_stream");
}
