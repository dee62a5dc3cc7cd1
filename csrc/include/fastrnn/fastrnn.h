// The public C++ interface of fastrnn: recurrent sequence kernels on raw pointers.
//
// The caller owns and allocates every buffer, the workspace included; the library keeps no state
// between calls. Nothing here depends on Python or torch. All matrices are row-major, weights have
// torch's layout and gate order (LSTM: i, f, g, o; GRU: r, z, n).
//
// Dimensions: T steps, B sequences, I inputs, H hidden units, P projected units (0: none),
// O = P ? P : H the width of the output, G gates, D directions, N rows of a packed batch.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace fastrnn {

enum class Cell { kElman, kLstm, kGru };
// Of reduced numbers, products are summed and the maths is done in float32, and so are the carried
// cell state and the reserve; h is rounded at each step. kInt8: float32 buffers and 8-bit weights,
// for inference; rows are rounded to 8 bits with a scale of their own before each product.
enum class Dtype { kFloat32, kFloat64, kBfloat16, kFloat16, kInt8 };
enum class Activation { kTanh, kRelu };

// One layer over one batch of sequences. Every size and every buffer layout follows from it.
struct Problem {
  Cell cell = Cell::kLstm;
  Dtype dtype = Dtype::kFloat32;
  Activation activation = Activation::kTanh;  // of Elman cells; the others have tanh
  int64_t T = 1, B = 1, I = 1, H = 1, P = 0;
  int directions = 1;            // 2: a forward and a backward pass side by side in y
  bool reverse = false;          // with one direction: it runs from the last step to the first
  bool bias = true;              // false: b_ih and b_hh are not read
  bool ragged = false;           // packed rows, see Offsets
  bool training = false;         // forward() fills the reserve that backward() reads
  int64_t checkpoint_every = 0;  // K > 0: the reserve has the states of every K-th step only
  int threads = 1;               // at most this many threads work on a call
  // S > 1: backward() leaves the weights' gradients of S samples apart, [S,...] each; sequence b is
  // of sample b % S. S divides B, and of a ragged batch the number of rows at each step.
  int64_t samples = 1;
};

// Elements from one step or row to the next; features are adjacent. Row (t, b) of a dense sequence
// starts at t * step + b * row, that of a packed one at (offsets[t] + b) * row.
struct Strides {
  int64_t step = 0, row = 0;
};

// Where the rows of a ragged batch are if they are not packed: row i of the packed order is row
// (t, b) = (rows[i] / B, rows[i] % B) of the caller's [T,B,...] x, y, dy and dx, by their strides.
// No number may come twice. Other rows of these are never read; those of y and dx are set to zero.
// The caller's T and B may be larger than the problem's. The reserve is packed all the same.
struct RowTable {
  const int64_t* rows = nullptr;  // [N]; null: packed
  int64_t T = 0, B = 0;           // every number is in [0, T * B)
};

// A padded batch as a ragged one. Each of its sequences is cut in segments, each of which starts
// from zero where the sequence is reset, and is to the engine a sequence of its own.
struct PaddedBatch {
  int64_t T = 0, B = 0;
  const int64_t* lengths = nullptr;  // [B], in [0, T]; null: all are T
  const bool* reset = nullptr;       // (t, b) at t * step + b * row; null: one segment a sequence
  int64_t reset_step = 0, reset_row = 0;
};

struct SegmentSizes {
  int64_t T = 0, B = 0, N = 0;  // of the ragged problem: steps, segments, rows
  int64_t empty = 0;            // sequences without a step, which have no segment
};

// Segments are in the ragged problem's order, the longest first. There are two numbers for each
// segment or sequence: [0] for a direction that runs forwards, [1] backwards.
struct SegmentBuffers {
  int64_t* offsets = nullptr;  // [T + 1]
  int64_t* rows = nullptr;     // [N], for RowTable
  int64_t* owner = nullptr;    // [segments]: the sequence that it is a part of
  bool* fresh[2] = {};         // [segments]: it starts from zero, not from the initial state
  int64_t* last[2] = {};       // [sequences]: the segment that ends with the final state; or 0
};

// std::invalid_argument if a length is not in [0, T].
SegmentSizes segment_sizes(const PaddedBatch& batch);
void segments(const PaddedBatch& batch, const SegmentBuffers& buffers);

struct Weights {               // of one direction; null: absent
  const void* w_ih = nullptr;  // [G*H,I]
  const void* w_hh = nullptr;  // [G*H,O]
  const void* b_ih = nullptr;  // [G*H]
  const void* b_hh = nullptr;  // [G*H]
  const void* w_hr = nullptr;  // [P,H]
  // Of 8-bit weights, which are these many times a row's numbers: [G*H], [G*H], [P].
  const float *scale_ih = nullptr, *scale_hh = nullptr, *scale_hr = nullptr;
};

struct WeightGradients {  // of one direction, each overwritten; null: not computed
  void* w_ih = nullptr;
  void* w_hh = nullptr;
  void* b_ih = nullptr;
  void* b_hh = nullptr;
  void* w_hr = nullptr;
};

// A way to end a long call: the calling thread asks between blocks of steps, never another one.
// `asked` must not throw. When it has returned true the call returns early, and false; what is in
// the buffers that it overwrites is then undefined.
struct Interrupt {
  bool (*asked)(void* context) = nullptr;  // null: never
  void* context = nullptr;
};

struct ForwardBuffers {
  const void* x = nullptr;  // [T,B,I] by strides, or [N,I]
  Strides x_strides;
  const int64_t* offsets = nullptr;  // [T+1], ragged only: rows before step t; B = offsets[1]
  RowTable table;                    // ragged only
  const void* h0 = nullptr;          // [D,B,O], null: zeros
  const void* c0 = nullptr;          // [D,B,H], null: zeros; LSTM
  Weights weights[2];                // read only when `repack`
  void* y = nullptr;                 // [T,B,D*O] by strides, or [N,D*O]; overwritten
  Strides y_strides;
  void* h_n = nullptr;  // [D,B,O]; overwritten
  void* c_n = nullptr;  // [D,B,H]; overwritten; LSTM
  // [D,T*B or N,saved,H], or with checkpoint_every = K [D,ceil(T/K)*B,saved,H]; float64 or float32;
  // overwritten when training.
  void* reserve = nullptr;
  // Sizes::packed bytes; overwritten when `repack`, else read. May be null when `repack` and
  // Sizes::packs_as_used: nothing is kept, the fastest way to use weights a few times.
  void* packed = nullptr;
  // false: `packed` holds these very weights from an earlier call, of a problem with the same cell,
  // dtype, I, H, P, directions, bias and Sizes::packed: bfloat16's layout can depend on B.
  bool repack = true;
  void* workspace = nullptr;  // Sizes::workspace bytes; overwritten
  Interrupt interrupt;
};

struct BackwardBuffers {
  const void* x = nullptr;  // as in forward
  Strides x_strides;
  const int64_t* offsets = nullptr;
  RowTable table;
  const void* h0 = nullptr;
  const void* c0 = nullptr;
  Weights weights[2];
  const void* y = nullptr;  // forward's output
  Strides y_strides;
  const void* reserve = nullptr;
  const void* dy = nullptr;  // as y, null: zeros
  Strides dy_strides;
  const void* dh_n = nullptr;  // [D,B,O], null: zeros
  const void* dc_n = nullptr;  // [D,B,H], null: zeros
  void* dx = nullptr;          // as x; overwritten; null: not computed
  Strides dx_strides;
  void* dh0 = nullptr;  // [D,B,O]; overwritten; null: not computed
  void* dc0 = nullptr;  // [D,B,H]; overwritten; null: not computed
  WeightGradients gradients[2];
  // [D,T*B or N,gradients+states,H]: gradients of the pre-activations, see CellInfo, and of the
  // states after the step, before a projection; float64 or float32; overwritten; null: not kept.
  void* dgates = nullptr;
  void* workspace = nullptr;  // Sizes::backward_workspace bytes; overwritten
  Interrupt interrupt;
};

// A second derivative of a layer with one direction. Let v be a direction in the space of the
// layer's inputs: then forward()'s results change by their derivative in direction v, and so do
// backward()'s. What these are is needed to differentiate backward(), second derivatives being
// symmetric. Here are the parts that go through time; products with all matrices but W_hh, which
// are made for all steps at once, are the caller's. Rows are step by step, N = T*B or of a ragged
// batch offsets[T]; all is of the problem's dtype, float32 or float64. There is no projection.
struct SecondOrderBuffers {
  const int64_t* offsets = nullptr;  // as in forward
  const void* w_hh = nullptr;        // [G*H,H]
  const void* wx = nullptr;          // [N,G,H]: W_ih x + b_ih
  const void* rh = nullptr;          // [N,G,H]: W_hh h + b_hh, h the output before the step
  const void* before[2] = {};        // [N,H]: h and c before each step
  const void* v_wx = nullptr;        // [N,G,H]: the derivative of wx in direction v; null: zeros
  const void* v_rh = nullptr;        // [N,G,H]: of rh, were h fixed; null: zeros
  const void* v_initial[2] = {};     // [B,H]: v's part of h0 and c0
  const void* dgates = nullptr;      // backward()'s, of this direction
  // [N,H]: what v's part of W_hh adds to the derivative of the gradient of h; null: zeros.
  const void* through = nullptr;
  void* v_before = nullptr;   // [N,H]: derivative of h before each step; overwritten
  void* v_y = nullptr;        // [N,H]: of the output; overwritten
  void* v_final[2] = {};      // [B,H]: of the final states; overwritten
  void* d = nullptr;          // [N,gradients,H]: of the pre-activations' gradients; overwritten
  void* d_initial[2] = {};    // [B,H]: of the initial states' gradients; overwritten
  void* workspace = nullptr;  // second_order_workspace() bytes; overwritten
  Interrupt interrupt;
};

struct Sizes {
  size_t packed = 0;              // bytes
  size_t workspace = 0;           // bytes
  size_t backward_workspace = 0;  // bytes
  int64_t saved = 0;              // values kept in the reserve for each row and unit
  // forward() can read weights as they lie, or pack them as it uses them: of one step, or of up to
  // four with few rows, not in 8 bits, and where no thread would read what another one does.
  bool packs_as_used = false;
};

// These throw std::invalid_argument, naming the field, for a problem or buffers that make no sense.
// forward(), backward() and second_order() return whether they came to their end, see Interrupt.
Sizes sizes(const Problem& problem);
bool forward(const Problem& problem, const ForwardBuffers& buffers);
bool backward(const Problem& problem, const BackwardBuffers& buffers);
size_t second_order_workspace(const Problem& problem, int64_t N);
bool second_order(const Problem& problem, const SecondOrderBuffers& buffers);

// A stack of layers that takes one time step at a time, for serving and for real-time threads:
// step() neither allocates nor locks. It keeps a packed copy of the weights, a snapshot. Not to be
// used by two threads at once. All but step(), which checks nothing, throw std::invalid_argument
// for what makes no sense, and then leave the stream as it was.
class Stream {
 public:
  // Of the problem, cell, dtype, activation, B, I, H, P and bias count; I is the first layer's.
  Stream(const Problem& problem, int layers);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  void load(const Weights* weights);  // [layers]; before the first step
  void step(const void* x, int64_t x_row, void* y, int64_t y_row);  // [B,I] to [B,O], by rows
  // h [layers,B,O] of the dtype, c [layers,B,H] float64 or float32; null: zeros. c is not read or
  // written unless the cell is an LSTM.
  void set_state(const void* h, const void* c);
  void get_state(void* h, void* c) const;

 private:
  struct Implementation;
  Implementation* self_;
};

struct CellInfo {
  const char* name;
  int gates, states, saved;
  bool projects;  // P > 0 is possible
  bool has_relu;  // Activation::kRelu is possible
  // Distinct gradients of pre-activations, and which of them belongs to each gate of the input and
  // of the recurrent product.
  int gradients;
  const int* state_slots;  // [states]: which saved value is the state after the step; -1: none
  const int *of_input, *of_recurrent;  // [gates]
};
CellInfo cell_info(Cell cell);
Cell cell_from_name(const std::string& name);

// Asks the system for large pages for memory that is about to be written for the first time. Where
// pages are small, a fault for each takes longer than writing what it holds, and large weights are
// read more slowly. Only a hint: a system may refuse or not know it.
void advise_large_pages(void* start, size_t bytes);

// The instruction set in use: the best one the processor and the system support, or the one that
// the environment variable FASTRNN_ISA names. Buffers packed under one must not be used under
// another.
const char* isa();
std::vector<std::string> available_isas();
void set_isa(const std::string& name);

// Another library's threads, which then work on calls in place of threads of our own. Those of
// OpenMP go on spinning for milliseconds after a parallel region: they are there at once, and next
// to them others would have half a processor each. Nothing may throw.
struct ThreadLender {
  // Has up to `threads` - 1 threads call body(data), at once or later, and returns.
  void (*start)(void (*body)(void*), void* data, unsigned threads) = nullptr;
  // Called by the same thread, after start(): returns when they have all returned from body.
  void (*end)() = nullptr;
  // Whether the calling thread is itself a lent one, or between its start() and end().
  int (*within)() = nullptr;
};

// From the next call on; null: threads of our own again. Nothing may be under way meanwhile. Our
// own work in any case where a call is for more threads than there are processors now, or 63, where
// its thread is `within`, and in children forked later.
void use_threads(const ThreadLender* lender);

// A 128-bit hash of the content of some buffers: equal content, equal hash.
struct Fingerprint {
  uint64_t words[2];
};
Fingerprint fingerprint(const void* const* pointers, const size_t* bytes, size_t count);

// What one thread of this machine can do, measured now: multiply-adds as the products of that dtype
// make them, in GFLOP/s, and reading a buffer of that many bytes again and again in GB/s.
double fma_peak(Dtype dtype, double seconds);
double read_bandwidth(void* buffer, size_t bytes, double seconds);

const char* version();

}  // namespace fastrnn
