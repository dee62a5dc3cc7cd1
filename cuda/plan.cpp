// Chooses a kernel and its shape by a model of one step: the products, what blocks read through L2,
// and the wait for one another. The model only ranks shapes; it was never fitted to a measurement.
#include <algorithm>
#include <cstring>

#include "cells/list.h"
#include "check.h"
#include "launch.h"

namespace fastrnn::cuda {
namespace {

constexpr double kReached = 0.6;  // of a peak rate

struct Named {
  const char* name;
  int major, minor, multiprocessors;
  int64_t shared_per_block, shared_per_multiprocessor;
  int threads;
  double clock_ghz, memory_gb_per_s;
};
constexpr Named kDevices[] = {
    {"T4", 7, 5, 40, 65536, 65536, 1024, 1.59, 320},
    {"A100", 8, 0, 108, 166912, 167936, 2048, 1.41, 2039},
    {"RTX3090", 8, 6, 82, 101376, 102400, 1536, 1.70, 936},
    {"L4", 8, 9, 58, 101376, 102400, 1536, 2.04, 300},
    {"RTX4090", 8, 9, 128, 101376, 102400, 1536, 2.52, 1008},
    {"H100", 9, 0, 132, 232448, 233472, 2048, 1.755, 3350},
    {"H200", 9, 0, 132, 232448, 233472, 2048, 1.755, 4800},
    {"B200", 10, 0, 148, 232448, 233472, 2048, 1.85, 8000},
    {"RTX5090", 12, 0, 170, 101376, 102400, 1536, 2.41, 1792},
};

// Multiply-adds of a multiprocessor in one clock.
double rate(const Device& device, Format format) {
  const bool server = device.minor == 0 && device.major >= 8 && device.major < 12;
  switch (format) {
    case kFormatFloat64:
      return server ? (device.major == 8 ? 32 : 64) : 2;
    case kFormatFloat32:
      return device.major * 10 + device.minor <= 80 ? 64 : 128;
    case kFormatTf32:
      return server ? 512 : 256;
    default:
      return server ? 1024 : 512;
  }
}

void check_problem(const Problem& p, const Device& device, bool tf32) {
  FASTRNN_CHECK(p.dtype != Dtype::kInt8, "dtype must be a floating-point one on CUDA, got int8");
  FASTRNN_CHECK(p.T >= 1 && p.B >= 0 && p.H >= 1 && p.P >= 0 && p.P < p.H,
                "T and H must be at least 1, B at least 0, P in [0, H), got "
                    << p.T << ", " << p.H << ", " << p.B << ", " << p.P);
  FASTRNN_CHECK(p.T < 1 << 30 && p.B < 1 << 20 && p.H <= 1 << 20,
                "T must be below 2^30, B below 2^20 and H at most 2^20 on CUDA, got "
                    << p.T << ", " << p.B << ", " << p.H);
  FASTRNN_CHECK(p.directions == 1 || (p.directions == 2 && !p.reverse),
                "directions must be 1 or 2, reverse needs 1");
  const Layout cell = layout(p.cell);
  FASTRNN_CHECK(p.P == 0 || cell.projects, "P must be 0: this cell has no projection");
  FASTRNN_CHECK(p.activation == Activation::kTanh || cell.has_relu,
                "activation must be tanh: this cell has no other");
  FASTRNN_CHECK(p.checkpoint_every == 0, "checkpoint_every must be 0 on CUDA");
  FASTRNN_CHECK(!tf32 || p.dtype == Dtype::kFloat32, "tf32 is for float32");
  const int capability = device.major * 10 + device.minor;
  FASTRNN_CHECK(capability >= 75, "the GPU's compute capability must be at least 7.5, got "
                                      << device.major << '.' << device.minor);
  FASTRNN_CHECK(capability >= 80 || (p.dtype != Dtype::kBfloat16 && !tf32),
                "bfloat16 and TF32 need a GPU of compute capability 8.0 or later, got "
                    << device.major << '.' << device.minor);
}

struct Planner {
  const Problem& p;
  const Device& device;
  Format format;
  const Functions& kernels;
  int64_t O() const { return p.P ? p.P : p.H; }
  int gates() const { return layout(p.cell).gates; }

  bool fits(Plan& plan) const {
    plan.shared_bytes = kernels.shared_bytes(p, plan);
    plan.weight_bytes = kernels.weight_bytes(p, plan);
    plan.register_bytes = kernels.register_bytes(p, plan);
    if (plan.shared_bytes > device.shared_per_block) return false;
    constexpr int64_t kReserved = 1024;
    const int64_t most =
        std::min(device.shared_per_multiprocessor / (plan.shared_bytes + kReserved),
                 static_cast<int64_t>(device.threads_per_multiprocessor / plan.threads));
    plan.blocks_per_multiprocessor = static_cast<int>(most);
    // Registers are bounded so that one block always fits; no more is counted on.
    return most >= 1 && (plan.kernel == Kernel::kStep || plan.blocks <= device.multiprocessors);
  }

  void model(Plan& plan, int64_t tile_rows, int64_t length, int64_t launches) const {
    const int64_t size = storage_bytes(p.dtype);
    const bool stays = plan.kernel == Kernel::kPersistent;
    const int64_t read = (stays ? 0 : tile_rows) + plan.rows;
    plan.broadcast_bytes = plan.blocks * read * length * size;
    // Partial sums of a product that is split over blocks.
    if (plan.splits > 1) plan.broadcast_bytes += 2 * plan.blocks * tile_rows * plan.rows * 4;
    const double clocks = device.clock_ghz * 1e3;  // per us
    const double waves = double(quotient_up(plan.blocks, device.multiprocessors));
    const double products = double(quotient_up(tile_rows, 32) * 32) * plan.rows * double(length);
    plan.product_us = waves * products / (rate(device, format) * kReached * clocks);
    plan.broadcast_us = double(plan.broadcast_bytes) / (device.l2_gb_per_s * 1e3);
    plan.wait_us =
        stays ? device.barrier_us * (plan.splits > 1 ? 2 : 1) : device.launch_us * double(launches);
    plan.step_us = plan.product_us + plan.broadcast_us + plan.wait_us;
  }

  Plan step(bool backward) const {
    constexpr int kFew = 16, kMany = 32, kThreadsPerRow = 8;
    Plan plan;
    plan.backward = backward, plan.tf32 = format == kFormatTf32;
    const int rows_of_tile = backward ? 16 : 32;
    plan.units = backward ? 16 : 32 / gates() / 8 * 8;
    plan.rows = p.B <= kFew ? kFew : kMany;
    plan.unit_blocks = static_cast<int>(quotient_up(p.H, plan.units));
    plan.row_blocks = static_cast<int>(quotient_up(std::max<int64_t>(p.B, 1), plan.rows));
    plan.threads = plan.rows * kThreadsPerRow;
    plan.blocks = plan.unit_blocks * plan.row_blocks * p.directions;
    FASTRNN_CHECK(fits(plan), "the GPU has " << device.shared_per_block
                                             << " bytes of shared memory for a block, a step needs "
                                             << plan.shared_bytes);
    model(plan, rows_of_tile, backward ? gates() * p.H : O(), p.P ? 2 : 1);
    return plan;
  }

  // Tiles of `rows_of_tile` rows of weights, a step of all layers: what each block reads through
  // L2, and its products.
  void model_stream(Plan& plan, int64_t tiles, int64_t projection_tiles) const {
    const double sweeps = double(quotient_up(tiles, plan.blocks));
    const double projections = double(quotient_up(projection_tiles, plan.blocks));
    const double numbers =  // of the sums of one block
        sweeps * double(p.I + O() + (plan.layers - 1) * 2 * O()) +
        projections * double(plan.layers * p.H);
    constexpr int kTileRows = 32;
    const double bytes = numbers * (kTileRows + plan.rows) * double(storage_bytes(p.dtype));
    plan.broadcast_bytes = static_cast<int64_t>(bytes) * plan.blocks;
    plan.product_us = numbers * kTileRows * plan.rows /
                      (rate(device, format) * kReached * device.clock_ghz * 1e3);
    plan.broadcast_us = bytes * device.multiprocessors / (device.l2_gb_per_s * 1e3);
    const int phases = plan.layers * (p.P ? 2 : 1);
    plan.wait_us = device.launch_us + (plan.blocks > 1 ? device.barrier_us * (phases - 1) : 0);
    plan.step_us = plan.product_us + plan.broadcast_us + plan.wait_us;
  }
  // Few blocks, down to one, where waiting costs more than they save.
  Plan stream(int layers) const {
    constexpr int kFew = 16, kMany = 32, kThreadsPerRow = 8, kProjectionUnits = 32;
    Plan plan, best;
    plan.kernel = Kernel::kStream, plan.tf32 = format == kFormatTf32, plan.layers = layers;
    plan.units = 32 / gates() / 8 * 8, plan.rows = p.B <= kFew ? kFew : kMany;
    plan.unit_blocks = static_cast<int>(quotient_up(p.H, plan.units));
    plan.row_blocks = static_cast<int>(quotient_up(std::max<int64_t>(p.B, 1), plan.rows));
    plan.threads = plan.rows * kThreadsPerRow;
    const int tiles = plan.unit_blocks * plan.row_blocks;
    const auto projections = quotient_up(p.P, kProjectionUnits) * plan.row_blocks;
    const int most = std::min(tiles, device.multiprocessors);
    for (plan.blocks = 1;; plan.blocks = std::min(2 * plan.blocks, most)) {
      FASTRNN_CHECK(fits(plan), "the GPU has " << device.shared_per_block
                                               << " bytes of shared memory for a block, a stream "
                                                  "needs "
                                               << plan.shared_bytes);
      model_stream(plan, tiles, projections);
      if (!best.blocks || plan.step_us < best.step_us) best = plan;
      if (plan.blocks == most) return best;
    }
  }

  Plan persistent_of(bool backward, int units, int rows, int splits) const {
    constexpr int kThreads = 256;
    Plan plan;
    plan.kernel = Kernel::kPersistent, plan.tf32 = format == kFormatTf32;
    plan.backward = backward, plan.splits = splits;
    plan.units = units, plan.rows = rows, plan.threads = kThreads;
    plan.unit_blocks = static_cast<int>(quotient_up(p.H, units * splits) * splits);
    plan.row_blocks = static_cast<int>(quotient_up(p.B, rows));
    plan.blocks = plan.unit_blocks * plan.row_blocks * p.directions;
    return plan;
  }
  // The product with W_hh and then that with W_hr.
  void model_projected(Plan& plan, int64_t tile_rows) const {
    Plan projection = plan;
    model(projection, quotient_up(p.P, plan.unit_blocks), p.H, 1);
    model(plan, tile_rows, p.P, 1);
    plan.broadcast_bytes += projection.broadcast_bytes;
    plan.product_us += projection.product_us, plan.broadcast_us += projection.broadcast_us;
    plan.wait_us += projection.wait_us, plan.step_us += projection.step_us;
  }
  // With weights in registers if they do not fit into shared memory.
  void consider(Plan plan, Plan& best) const {
    const int64_t outputs = plan.units * plan.splits;
    const int64_t tile_rows = plan.backward ? outputs : gates() * plan.units;
    if (!fits(plan)) {
      const int64_t tiles = quotient_up(tile_rows, 32);  // of each of two groups of warps
      const bool holds = !p.P && format != kFormatFloat32 && format != kFormatFloat64;
      if (!holds || (tiles != 2 && tiles != 4)) return;
      plan.register_tiles = static_cast<int>(tiles);
      if (!fits(plan)) return;
    }
    if (p.P)
      model_projected(plan, tile_rows);
    else
      model(plan, tile_rows, plan.backward ? gates() * quotient_up(p.H, plan.splits) : p.H, 1);
    if (!best.blocks || plan.step_us < best.step_us) best = plan;
  }
  // The best shape that the device holds; `blocks` is 0 if it holds none.
  Plan persistent(bool backward) const {
    Plan best;
    if ((p.P && backward) || p.B < 1) return best;
    for (int rows = 16; rows <= 64; rows += 16)
      for (int units = 8; units < p.H + 8; units += 8)
        for (int splits = 1; splits <= (backward ? 16 : 1) && units * splits < p.H + 8; splits *= 2)
          consider(persistent_of(backward, units, rows, splits), best);
    return best;
  }
};

Planner planner(const Problem& p, const Device& device, bool tf32) {
  check_problem(p, device, tf32);
  const Format format = format_of(p.dtype, tf32);
  return {p, device, format, functions(p.cell, format)};
}

}  // namespace

Device device_named(const char* name) {
  std::string known;
  for (const Named& n : kDevices) {
    if (!std::strcmp(n.name, name)) {
      Device d;
      d.major = n.major, d.minor = n.minor, d.multiprocessors = n.multiprocessors;
      d.shared_per_block = n.shared_per_block;
      d.shared_per_multiprocessor = n.shared_per_multiprocessor;
      d.threads_per_multiprocessor = n.threads;
      d.clock_ghz = n.clock_ghz, d.memory_gb_per_s = n.memory_gb_per_s;
      d.l2_gb_per_s = l2_gb_per_s(d);
      return d;
    }
    known += (known.empty() ? "" : ", ") + std::string(n.name);
  }
  FASTRNN_CHECK(false, "device must be one of " << known << ", got " << name);
}

Layout layout(Cell cell) {
  Layout l;
#define FASTRNN_FILL(type, enumerator, name)                                                 \
  if (cell == enumerator) {                                                                  \
    l.gates = type::kRh, l.gradients = type::kD, l.saved = type::kSaved;                     \
    l.states = type::kState;                                                                 \
    l.projects = type::kProjects, l.has_relu = type::kHasRelu;                               \
    for (int g = 0; g < type::kWx; ++g) l.input[g] = type::kDwx[g];                          \
    for (int g = 0; g < type::kRh; ++g) {                                                    \
      l.recurrent[g] = type::kDrh[g];                                                        \
      FASTRNN_CHECK(l.recurrent[g] == l.recurrent[0] + g,                                    \
                    "gradients of the recurrent gates of " name " must follow one another"); \
    }                                                                                        \
  }
  FASTRNN_CELLS(FASTRNN_FILL)
#undef FASTRNN_FILL
  return l;
}

Plan plan(const Problem& p, const Device& device, bool backward, bool tf32) {
  const Planner make = planner(p, device, tf32);
  const Plan step = make.step(backward), persistent = make.persistent(backward);
  return persistent.blocks && persistent.step_us < step.step_us ? persistent : step;
}

Plan plan(const Problem& p, const Device& device, bool backward, bool tf32, Kernel kernel) {
  const Planner make = planner(p, device, tf32);
  FASTRNN_CHECK(kernel != Kernel::kStream, "kernel must not be that of streams: see stream_plan()");
  if (kernel == Kernel::kStep) return make.step(backward);
  FASTRNN_CHECK(!p.P || !backward,
                "the persistent kernel's backward pass has no projection; use the step kernel");
  FASTRNN_CHECK(p.B > 0, "the persistent kernel needs a sequence, B is 0; use the step kernel");
  const Plan persistent = make.persistent(backward);
  FASTRNN_CHECK(persistent.blocks,
                "the weights of H = " << p.H << " do not fit into the GPU's "
                                      << device.multiprocessors
                                      << " multiprocessors; use the step kernel");
  return persistent;
}

Plan stream_plan(const Problem& p, int layers, const Device& device, bool tf32) {
  const Planner make = planner(p, device, tf32);
  FASTRNN_CHECK(p.directions == 1 && !p.reverse, "a stream runs forward: directions must be 1");
  FASTRNN_CHECK(p.I >= 1 && p.I < 1 << 20, "I must be in [1, 2^20), got " << p.I);
  FASTRNN_CHECK(layers >= 1 && layers <= kMostStreamLayers,
                "layers must be 1 to " << kMostStreamLayers << ", got " << layers);
  return make.stream(layers);
}

}  // namespace fastrnn::cuda
