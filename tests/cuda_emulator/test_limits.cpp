// What the emulator refuses and reports, and what plans refuse.
#include <cmath>

#include "../../cuda/primitives.cuh"
#include "compare.h"

namespace {

using namespace test;
namespace device = fastrnn::cuda;

template <class Call>
std::string message_of(Call call) {
  try {
    call();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}
bool has(const std::string& text, const char* part) { return text.find(part) != std::string::npos; }

void launch_limits() {
  const auto nothing = [] {};
  EXPECT(emulator::launch(nothing, {1, 1, 1}, 32, 232448, false) == 0, "all shared memory");
  EXPECT(emulator::launch(nothing, {1, 1, 1}, 32, 232449, false) == emulator::kInvalidValue,
         "a byte more");
  EXPECT(emulator::launch(nothing, {1, 1, 1}, 33, 0, false) == emulator::kInvalidValue, "33");
  EXPECT(emulator::launch(nothing, {132, 1, 1}, 64, 200000, true) == 0, "one block each");
  EXPECT(emulator::launch(nothing, {133, 1, 1}, 64, 200000, true) ==
             emulator::kCooperativeLaunchTooLarge,
         "a block too many");
}

void reports() {
  use_schedule(emulator::Schedule::kRandom, 5);
  unsigned flag = 0;
  const std::string stuck = message_of([&] {
    emulator::launch(
        [&] {
          while (device::load_acquire(&flag) < 1) device::spin_pause();
        },
        {2, 1, 1}, 32, 0, true);
  });
  EXPECT(has(stuck, "deadlock") && has(stuck, "spinning at test_limits.cpp"), stuck);
  EXPECT(has(stuck, "[random 5]"), "names schedule and seed: " << stuck);
  const std::string flight = message_of([&] {
    alignas(16) static unsigned char from[16];
    emulator::launch([&] { device::cp_async16(device::dynamic_shared(), from, 16); }, {1, 1, 1}, 32,
                     512, false);
  });
  EXPECT(has(flight, "in flight"), flight);
  const std::string lanes = message_of([&] {
    emulator::launch(
        [&] {
          if (device::thread_index() < 16)
            device::shuffle_xor(1, 1);
          else
            device::shuffle_xor(1, 2);
        },
        {1, 1, 1}, 32, 0, false);
  });
  EXPECT(has(lanes, "diverge"), lanes);
  const std::string left = message_of([&] {
    emulator::launch(
        [&] {
          if (device::thread_index() != 7) device::block_barrier();
        },
        {1, 1, 1}, 32, 0, false);
  });
  EXPECT(has(left, "ended while others wait") || has(left, "in __syncthreads"), left);
}

// Shared memory and what cp.async has not brought yet are NaN.
void poison() {
  alignas(16) static float from[4] = {1, 2, 3, 4};
  int poisoned = 0, arrived = 0;
  emulator::launch(
      [&] {
        if (device::thread_index()) return;
        auto* shared = static_cast<float*>(static_cast<void*>(device::dynamic_shared()));
        poisoned += std::isnan(shared[0]);
        shared[0] = 5;
        device::cp_async16(shared, from, 8);
        device::cp_async_commit();
        poisoned += std::isnan(shared[0]);
        device::cp_async_wait<1>();
        poisoned += std::isnan(shared[1]);
        device::cp_async_wait<0>();
        arrived = shared[0] == 1 && shared[1] == 2 && shared[2] == 0 && shared[3] == 0;
      },
      {1, 1, 1}, 32, 64, false);
  EXPECT(poisoned == 3 && arrived, poisoned << ' ' << arrived);
}

void plans() {
  Problem p;
  p.cell = Cell::kLstm, p.dtype = Dtype::kBfloat16, p.H = 1024, p.B = 16, p.T = 2;
  const gpu::Device h100 = gpu::device_named("H100");
  const gpu::Plan plan = gpu::plan(p, h100, false, false, gpu::Kernel::kPersistent);
  EXPECT(plan.blocks <= 132 && plan.shared_bytes <= h100.shared_per_block, plan.blocks);
  EXPECT(plan.weight_bytes * plan.unit_blocks >= 4 * 1024 * 1024 * 2, plan.weight_bytes);
  EXPECT(gpu::plan(p, h100, true, false, gpu::Kernel::kPersistent).blocks > 0, "backward");
  p.H = 2048;
  for (bool backward : {false, true}) {
    const gpu::Plan large = gpu::plan(p, h100, backward, false, gpu::Kernel::kPersistent);
    EXPECT(large.blocks <= 132 && large.shared_bytes <= h100.shared_per_block, large.blocks);
    EXPECT(large.register_bytes > 0 && large.register_bytes <= 128 << 10, large.register_bytes);
    EXPECT((large.register_bytes + large.weight_bytes) * large.unit_blocks >= 4 * 2048 * 2048 * 2,
           large.weight_bytes);
  }
  p.H = 4096;
  const auto of = [&](const gpu::Device& on) {
    return message_of([&] { gpu::plan(p, on, false, false, gpu::Kernel::kPersistent); });
  };
  EXPECT(has(of(h100), "do not fit"), of(h100));
  EXPECT(gpu::plan(p, h100, false, false).kernel == gpu::Kernel::kStep, "falls to the step kernel");
  EXPECT(has(of(gpu::device_named("T4")), "8.0 or later"), of(gpu::device_named("T4")));
  p.dtype = Dtype::kInt8;
  EXPECT(has(of(h100), "int8"), of(h100));
  EXPECT(has(message_of([] { gpu::device_named("H1"); }), "must be one of T4"), "unknown device");
}

}  // namespace

int main() {
  launch_limits();
  reports();
  poison();
  plans();
  return finish("test_limits");
}
