// The C++ interface of the CUDA kernels: what is sequential in a recurrent layer, on raw device
// pointers and a raw stream.
//
// The caller makes the products over whole sequences (cuBLAS does them best): forward() gets
// wx = x W_ih^T + b_ih ready, backward() leaves the gradients of the pre-activations, from which
// dx, dW and db are three more products. Nothing here allocates, waits for the device or keeps
// state; every call can be captured into a CUDA graph. Conventions are those of
// fastrnn/fastrnn.h: row-major matrices, torch's layouts and gate order, the caller owns every
// buffer. Of Problem, cell, dtype, activation, T, B, H, P, directions, reverse, ragged and training
// count. Rows (t, b) of a dense sequence start at t * step + b * row elements, those of a packed
// one at (offsets[t] + b) * row. N is the number of rows, O = P ? P : H.
#pragma once

#include <fastrnn/fastrnn.h>

#include <cstddef>
#include <cstdint>

namespace fastrnn::cuda {

using Stream = void*;  // a cudaStream_t

// What plans are made from; device_properties() asks the driver for it.
struct Device {
  int major = 0, minor = 0;  // compute capability
  int multiprocessors = 0;
  int64_t shared_per_block = 0;  // bytes, the largest that a block may opt in to
  int64_t shared_per_multiprocessor = 0;
  int64_t registers_per_multiprocessor = 65536;
  int threads_per_multiprocessor = 2048;
  double clock_ghz = 0;        // of the multiprocessors
  double l2_gb_per_s = 0;      // what all multiprocessors together read from L2
  double memory_gb_per_s = 0;  // from device memory
  double barrier_us = 1.5;     // assumed: one barrier between all blocks
  double launch_us = 2.5;      // assumed: one launch after another in a stream
};

// kStep: one launch (with a projection two) for each time step, any size.
// kPersistent: one cooperative launch for the whole sequence, weights on chip.
// kStream: one launch for one time step of a whole stack of layers.
enum class Kernel { kStep, kPersistent, kStream };

// How a pass will run. The times are a model's, never measured: see docs/cuda.md.
struct Plan {
  Kernel kernel = Kernel::kStep;
  bool backward = false;
  bool tf32 = false;    // float32 products of TF32 factors
  int units = 0;        // hidden units of a block
  int rows = 0;         // sequences of a block
  int unit_blocks = 0;  // blocks side by side over the units ...
  int row_blocks = 0;   // ... and over the batch: groups that need no word from each other
  int layers = 1;       // of the stack; more than one in a stream only
  int splits = 1;       // backward, persistent: parts of k in the second dimension of blocks
  int threads = 0;      // of a block
  int blocks = 0;       // of one launch, all directions
  int blocks_per_multiprocessor = 0;
  int64_t shared_bytes = 0;     // of a block
  int64_t weight_bytes = 0;     // of these, weights that stay for the whole sequence
  int64_t register_bytes = 0;   // of weights that stay in a block's registers
  int register_tiles = 0;       // ... as tiles of 16 rows of each warp: 0, 2 or 4
  int64_t broadcast_bytes = 0;  // all blocks of a step together read these through L2
  double product_us = 0, broadcast_us = 0, wait_us = 0;  // model, of a step
  double step_us = 0;                                    // model: their sum
};

struct ForwardBuffers {
  const void* wx[2] = {};  // [T,B,G*H] by strides or [N,G*H], of each direction, bias included
  Strides wx_strides;
  const int64_t* offsets = nullptr;  // [T+1] on the device, ragged only
  const void* h0 = nullptr;          // [D,B,O], null: zeros
  const void* c0 = nullptr;          // [D,B,H], null: zeros; of cells with a second state
  const void* w_hh[2] = {};          // [G*H,O]
  const void* b_hh[2] = {};          // [G*H], null: zeros
  const void* w_hr[2] = {};          // [P,H]
  void* y = nullptr;                 // [T,B,D*O] by strides or [N,D*O]; overwritten
  Strides y_strides;
  void* h_n = nullptr;        // [D,B,O]; overwritten
  void* c_n = nullptr;        // [D,B,H]; overwritten
  void* reserve = nullptr;    // [D,N,saved,H] float32 or float64; overwritten when training
  void* workspace = nullptr;  // Sizes::workspace bytes, aligned to 16; overwritten
};

struct BackwardBuffers {
  const int64_t* offsets = nullptr;  // these as in forward
  const void* h0 = nullptr;
  const void* c0 = nullptr;
  const void* w_hh[2] = {};
  const void* w_hr[2] = {};
  const void* y = nullptr;
  Strides y_strides;
  const void* reserve = nullptr;
  const void* dy = nullptr;  // [T,B,D*O] by strides or [N,D*O], null: zeros
  Strides dy_strides;
  const void* dh_n = nullptr;  // [D,B,O], null: zeros
  const void* dc_n = nullptr;  // [D,B,H], null: zeros
  // [N,gradients,H] of each direction, rows adjacent; overwritten. See Layout for which gate of
  // which product each belongs to.
  void* dgates[2] = {};
  void* dprojected[2] = {};   // [N,P]: gradient of each step's whole output; overwritten; P only
  void* dh0 = nullptr;        // [D,B,O]; overwritten
  void* dc0 = nullptr;        // [D,B,H]; overwritten
  void* workspace = nullptr;  // Sizes::workspace bytes, aligned to 16; overwritten
};

// One time step of a stack of layers, its input products included: what serving needs.
struct StreamBuffers {
  const Weights* weights = nullptr;  // [layers], on the host, of device pointers
  const void* x = nullptr;           // [B,I], rows x_row elements apart
  int64_t x_row = 0;
  void* y = nullptr;  // [B,O], rows y_row elements apart; the last layer's output; overwritten
  int64_t y_row = 0;
  void* state = nullptr;  // stream_bytes(), aligned to 16; read, and left one step further
};

// Of a cell. Gate g of the input product has the gradient number input[g] of dgates, gate g of the
// recurrent product the number recurrent[g].
struct Layout {
  int gates = 0, gradients = 0, states = 0;
  bool projects = false, has_relu = false;
  int saved = 0;  // values of the reserve for each row and unit; with a projection one more: the
                  // output before it, the last
  int input[4] = {}, recurrent[4] = {};
};

struct Sizes {
  size_t workspace = 0;  // bytes
  int64_t saved = 0;     // values of the reserve for each row and unit
};

// What CUDA the driver is for (0: there is no driver) and which one this build came with, as
// 1000 * major + 10 * minor.
struct Versions {
  int driver = 0, own = 0;
};
Versions versions();
// Of the current device. Throws std::runtime_error when there is none.
Device device_properties();
// "T4", "A100", "H100", ...: properties from data sheets, for planning without the device.
Device device_named(const char* name);

Layout layout(Cell cell);

// The kernel that should be fastest by the model, or the one that is asked for. These throw
// std::invalid_argument when the device cannot run it, saying why.
Plan plan(const Problem& problem, const Device& device, bool backward, bool tf32);
Plan plan(const Problem& problem, const Device& device, bool backward, bool tf32, Kernel kernel);

Sizes sizes(const Problem& problem, const Plan& plan);

// The caller has made the buffers' device current and adds the work to `stream`. std::runtime_error
// when a launch fails.
void forward(const Problem& problem, const Plan& plan, const ForwardBuffers& buffers,
             Stream stream);
void backward(const Problem& problem, const Plan& plan, const BackwardBuffers& buffers,
              Stream stream);

// A stream: stream_set_state() once, then stream_step() for each time step, each one launch. The
// state (h and c of all layers, and how far the stream is) stays in a buffer of the caller's, and
// each step finds in it which half is the present one: a step captured into a CUDA graph can be
// replayed any number of times, x and y being read and written where they were at the capture. Of
// Problem, cell, dtype, activation, B, I (the first layer's), H and P count. All steps of a stream
// need the same plan. A Python stream on CUDA is therefore: a plan and a state of stream_bytes()
// made by torch.empty, set_state(0, 0) for reset(), and one call with the pointers of x, y and of
// the module's own parameters (no packed copy: refresh() has nothing to do) for step().
constexpr int kMostStreamLayers = 64;
Plan stream_plan(const Problem& problem, int layers, const Device& device, bool tf32);
size_t stream_bytes(const Problem& problem, const Plan& plan);
void stream_step(const Problem& problem, const Plan& plan, const StreamBuffers& buffers,
                 Stream stream);
// h [layers,B,O] of the dtype, c [layers,B,H] float64 or float32, on the device; null: zeros. c is
// read and written of cells with a second state only.
void stream_set_state(const Problem& problem, const Plan& plan, void* state, const void* h,
                      const void* c, Stream stream);
void stream_get_state(const Problem& problem, const Plan& plan, const void* state, void* h, void* c,
                      Stream stream);

}  // namespace fastrnn::cuda
