// What needs the CUDA runtime but no cell: the device, errors, a stream's state.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "launch.h"
#include "primitives.cuh"

namespace fastrnn::cuda {
namespace {

constexpr int kCopyThreads = 256, kMostCopyBlocks = 64;

struct StateCopy {
  const unsigned long long* arrivals;
  unsigned long long whole;
  const unsigned char* h;
  unsigned char* to;
  int64_t bytes;
  int blocks;
};
FASTRNN_KERNEL(kCopyThreads)
copy_state(const StateCopy task) {
  const auto turn = static_cast<int64_t>(*task.arrivals / task.whole % 2);
  const int64_t step = int64_t(task.blocks) * kCopyThreads;
  for (int64_t i = block_x() * kCopyThreads + thread_index(); i < task.bytes; i += step)
    task.to[i] = task.h[turn * task.bytes + i];
}

}  // namespace

void stream_set_state(const Problem& p, const Plan& plan, void* base, const void* h, const void* c,
                      Stream stream) {
  if (p.B == 0) return;
  const StreamState state(p, plan.layers, base);
  const auto set = [&](void* to, const void* from, int64_t bytes) {
    const auto n = static_cast<size_t>(bytes);
    if (bytes) check_launch(from ? copy(to, from, n, stream) : clear(to, n, stream), "set state");
  };
  check_launch(clear(state.arrivals, sizeof *state.arrivals, stream), "set state");
  set(state.h, h, state.h_bytes), set(state.c, c, state.c_bytes);
}

void stream_get_state(const Problem& p, const Plan& plan, const void* base, void* h, void* c,
                      Stream stream) {
  if (p.B == 0) return;
  const StreamState state(p, plan.layers, const_cast<void*>(base));
  const auto blocks = static_cast<int>(
      std::min<int64_t>(quotient_up(state.h_bytes, kCopyThreads), kMostCopyBlocks));
  const StateCopy task = {state.arrivals,
                          stream_arrivals(p, plan),
                          static_cast<const unsigned char*>(state.h),
                          static_cast<unsigned char*>(h),
                          state.h_bytes,
                          blocks};
  check_launch(launch(copy_state, blocks, 1, 1, kCopyThreads, 0, false, stream, task), "get state");
  if (state.c_bytes)
    check_launch(copy(c, state.c, static_cast<size_t>(state.c_bytes), stream), "get state");
}

Versions versions() {
  Versions found;
  check_launch(query_versions(found), "no versions");
  return found;
}

Device device_properties() {
  Device device;
  check_launch(query_device(device), "no device");
  device.l2_gb_per_s = l2_gb_per_s(device);
  return device;
}

void check_launch(int code, const char* kernel) {
  if (code)
    throw std::runtime_error(std::string("CUDA error ") + std::to_string(code) + ", " +
                             error_text(code) + " (" + kernel + ")");
}

}  // namespace fastrnn::cuda
