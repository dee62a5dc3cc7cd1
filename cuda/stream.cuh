// One time step through a whole stack of layers in one cooperative launch, the products with the
// input included. Blocks share the tiles of a layer (32 rows of weights times 16 or 32 sequences)
// and wait for one another between layers; a block makes its products with h(t-1), which need no
// other layer, before it waits. h has two buffers that change places with every step, so that
// nobody overwrites what others still read; the count of arrivals tells which is which, so that a
// captured launch can be replayed.
#pragma once

#include "tasks.cuh"

namespace fastrnn::cuda {

template <class F, int kGatesOfProduct>
struct StreamProduct {
  using Format = F;
  using Storage = typename F::Storage;
  static constexpr int kTiles = 2, kGates = kGatesOfProduct, kUnits = units_of(kGatesOfProduct);
  static constexpr bool kTransposed = false;

  const Storage* weights[1];
  int units, numbers;  // in all; in a sum

  FASTRNN_DEVICE int width() const { return units; }
  FASTRNN_DEVICE int length() const { return numbers; }
};

template <class Storage>
struct StreamWeights {
  const Storage *w_ih, *w_hh, *b_ih, *b_hh, *w_hr;
};

template <class CellOfTask, class F>
struct StreamTask {
  using C = CellOfTask;
  using Format = F;
  using Storage = typename F::Storage;
  using Value = typename F::Value;
  static_assert(C::kWx == C::kRh, "both products of a unit have the same gates");

  StreamWeights<Storage> layers[kMostStreamLayers];
  FASTRNN_ISA::Options options;
  int count, B, I, H, O, rows, blocks;
  const Storage* x;
  int64_t x_row;
  Storage* y;
  int64_t y_row;
  unsigned long long* arrivals;  // of blocks at the ends of phases, in all steps
  Storage* h;                    // [2,L,B,O]
  Value* c;                      // [L,B,H]
  Storage* full;                 // [B,H] outputs before the projection; null: there is none

  FASTRNN_DEVICE int phases() const { return full ? 2 * count : count; }
  FASTRNN_DEVICE Storage* state(int buffer, int l, int b) const {
    return h + ((static_cast<int64_t>(buffer) * count + l) * B + b) * O;
  }
  // What the recurrent product of a layer reads, what its input product does, and its projection.
  FASTRNN_DEVICE const Storage* before(int turn, int l, int b) const {
    return b < B ? state(turn, l, b) : nullptr;
  }
  FASTRNN_DEVICE const Storage* input(int turn, int l, int b) const {
    if (b >= B) return nullptr;
    return l ? state(1 - turn, l - 1, b) : x + b * x_row;
  }
  FASTRNN_DEVICE const Storage* unprojected(int b) const {
    return b < B ? full + static_cast<int64_t>(b) * H : nullptr;
  }

  FASTRNN_DEVICE void finish(int turn, int l, int b, int u, const Value (&wx)[C::kWx],
                             const Value (&rh)[C::kRh]) const {
    typename C::template In<Value> in;
    for (int g = 0; g < C::kWx; ++g) in.wx[g] = wx[g], in.rh[g] = rh[g];
    const int64_t unit = (static_cast<int64_t>(l) * B + b) * H + u;
    if constexpr (C::kHoldsOutput) in.prev[0] = widen(state(turn, l, b)[u]);
    if constexpr (C::kState > 1) in.prev[1] = c[unit];
    FASTRNN_ISA::Arr<Value, C::kState> next;
    FASTRNN_ISA::Arr<Value, C::kSaved> kept;
    FASTRNN_ISA::cell_forward<C>(in, options, next, kept);
    if constexpr (C::kState > 1) c[unit] = next[1];
    if (full)
      full[static_cast<int64_t>(b) * H + u] = narrow<Storage>(next[0]);
    else
      put(turn, l, b, u, narrow<Storage>(next[0]));
  }
  FASTRNN_DEVICE void put(int turn, int l, int b, int o, Storage out) const {
    state(1 - turn, l, b)[o] = out;
    if (l + 1 == count) y[b * y_row + o] = out;
  }
};

// A block at work, and where it is in the step. Its shared memory: the stages of a product, partial
// sums of the recurrent and of the input product, a number.
template <class Task>
struct StreamBlock {
  using C = typename Task::C;
  using F = typename Task::Format;
  using Storage = typename F::Storage;
  using Value = typename F::Value;
  using Gates = StreamProduct<F, C::kRh>;
  using Projection = StreamProduct<F, 1>;
  using T = StepTile<Gates>;
  using Sums = Tile<F, 2>;

  FASTRNN_HD static int partial(int rows) { return kParts * rows * Sums::kPitch; }
  FASTRNN_HD static int64_t stage_bytes(int rows) {
    return int64_t(kStages) * T::stage(rows) * int64_t(sizeof(Storage));
  }
  FASTRNN_HD static int64_t sum_bytes(int rows) {
    return 2 * int64_t(partial(rows)) * int64_t(sizeof(Value));
  }
  static int64_t shared_bytes(int rows) { return stage_bytes(rows) + sum_bytes(rows) + 16; }

  const Task& task;
  unsigned char* memory;
  unsigned long long begun = 0;  // arrivals before this step
  int turn = 0;                  // the buffer of h(t-1)
  int passed = 0;                // phases of this block
  int seen = 0;                  // phases that all blocks are known to be through

  // The count of arrivals stays below that of the whole step until this block has made its last.
  FASTRNN_DEVICE void begin() {
    auto* shared = static_cast<unsigned long long*>(
        static_cast<void*>(memory + stage_bytes(task.rows) + sum_bytes(task.rows)));
    const auto whole = static_cast<unsigned long long>(task.phases() * task.blocks);
    if (thread_index() == 0) *shared = load_acquire(task.arrivals) / whole;
    block_barrier();
    begun = *shared * whole, turn = static_cast<int>(*shared % 2);
  }
  FASTRNN_DEVICE void wait() {
    if (seen < passed && thread_index() == 0) {
      const auto count = begun + static_cast<unsigned long long>(passed * task.blocks) -
                         FASTRNN_PLANTED(kCountShort);
      while (load_acquire(task.arrivals) < count) spin_pause();
    }
    seen = passed;
    block_barrier();
  }
  // Nobody says that it is through before all are through the phase before.
  FASTRNN_DEVICE void arrive() {
    wait();
    if (thread_index() == 0) add_release(task.arrivals, 1ull);
    ++passed;
  }

  FASTRNN_DEVICE Value* sums_of(int product) const {
    auto* sums = static_cast<Value*>(static_cast<void*>(memory + stage_bytes(task.rows)));
    return sums + product * partial(task.rows);
  }
  template <class Product>
  FASTRNN_DEVICE void multiply(const Product& product, int u0, const Storage* operand,
                               Value* to) const {
    const int warp = thread_index() / 32, part = warp % kParts, column = warp / kParts * 16;
    auto* stages = static_cast<Storage*>(static_cast<void*>(memory));
    Value sums[2][2][4] = {};
    StepTile<Product>::product(product, 0, u0, task.rows, operand, stages, sums);
    cp_async_wait<0>();
    block_barrier();
    Sums::leave(sums, to, task.rows, part, column);
  }

  FASTRNN_DEVICE void finish_gates(int l, int u0, int b0) const {
    const auto& w = task.layers[l];
    for (int i = thread_index(); i < Gates::kUnits * task.rows; i += task.rows * 8) {
      const int u = u0 + i % Gates::kUnits, column = i / Gates::kUnits, b = b0 + column;
      if (u >= task.H || b >= task.B) continue;
      Value rh[C::kRh], wx[C::kWx];
      for (int g = 0; g < C::kRh; ++g) {
        const int row = g * Gates::kUnits + u - u0;
        const int64_t bias = static_cast<int64_t>(g) * task.H + u;
        rh[g] = Sums::total(read(w.b_hh, bias), sums_of(0), task.rows, column, row);
        wx[g] = Sums::total(read(w.b_ih, bias), sums_of(1), task.rows, column, row);
      }
      task.finish(turn, l, b, u, wx, rh);
    }
  }
  FASTRNN_DEVICE void gates(int l) {
    const auto& w = task.layers[l];
    const Gates recurrent = {{w.w_hh}, task.H, task.O};
    const Gates input = {{w.w_ih}, task.H, l ? task.O : task.I};
    const int across = (task.H + Gates::kUnits - 1) / Gates::kUnits;
    const int tiles = across * ((task.B + task.rows - 1) / task.rows);
    for (int tile = block_x(); tile < tiles; tile += task.blocks) {
      const int u0 = tile % across * Gates::kUnits, b0 = tile / across * task.rows;
      const int b = b0 + thread_index() / 8;
      multiply(recurrent, u0, task.before(turn, l, b), sums_of(0));
      wait();
      multiply(input, u0, task.input(turn, l, b), sums_of(1));
      block_barrier();
      finish_gates(l, u0, b0);
    }
    arrive();
  }

  FASTRNN_DEVICE void project(int l) {
    const Projection product = {{task.layers[l].w_hr}, task.O, task.H};
    const int across = (task.O + Projection::kUnits - 1) / Projection::kUnits;
    const int tiles = across * ((task.B + task.rows - 1) / task.rows);
    for (int tile = block_x(); tile < tiles; tile += task.blocks) {
      const int o0 = tile % across * Projection::kUnits, b0 = tile / across * task.rows;
      wait();
      multiply(product, o0, task.unprojected(b0 + thread_index() / 8), sums_of(0));
      block_barrier();
      for (int i = thread_index(); i < Projection::kUnits * task.rows; i += task.rows * 8) {
        const int o = o0 + i % Projection::kUnits, column = i / Projection::kUnits;
        if (o >= task.O || b0 + column >= task.B) continue;
        const Value sum = Sums::total(0, sums_of(0), task.rows, column, o - o0);
        task.put(turn, l, b0 + column, o, narrow<Storage>(sum));
      }
    }
    arrive();
  }
};

template <class Task>
FASTRNN_KERNEL(kMostRows * 8, 2)
stream_kernel(const Task task) {
  StreamBlock<Task> block = {task, dynamic_shared()};
  block.begin();
  for (int l = 0; l < task.count; ++l) {
    block.gates(l);
    if constexpr (Task::C::kProjects)
      if (task.full) block.project(l);
  }
}

}  // namespace fastrnn::cuda
