// From a problem to its kernel: checks, then dtype -> ISA, the only switch.
#include <fastrnn/fastrnn.h>

#include <cstring>
#include <new>

#include "check.h"
#include "cpu/isa.h"
#include "cpu/kernels.h"

namespace fastrnn {
namespace {

// Whether the weights of bfloat16 are widened as they are multiplied, where no instruction
// multiplies them as they are. Of so few rows reading W_hh takes longer than multiplying does,
// unless L1 holds it in float32 too. Only whole pairs: the other half of a last word would be
// multiplied by whatever lies behind a row.
bool keeps_narrow(const Problem& p) {
  constexpr int64_t kFewRows = 2, kWords = 16 << 10;
  const int64_t columns = current_isa().kernels().info[int(p.cell)].gates * p.H;
  return p.dtype == Dtype::kBfloat16 && p.B <= kFewRows && p.P == 0 && !p.checkpoint_every &&
         p.H % 2 == 0 && columns * p.H >= kWords;
}

const CellKernels& kernels_for(const Problem& p) {
  const Kernels& all = current_isa().kernels();
  const CellKernels& few_rows = all.few_rows[int(p.cell)];
  return few_rows.forward && keeps_narrow(p) ? few_rows : all.cells[int(p.cell)][int(p.dtype)];
}

void check_problem(const Problem& p) {
  FASTRNN_CHECK(int(p.cell) >= 0 && int(p.cell) < kCells, "cell must be one of enum Cell");
  FASTRNN_CHECK(int(p.dtype) >= 0 && int(p.dtype) < kDtypes, "dtype must be one of enum Dtype");
  FASTRNN_CHECK(p.activation == Activation::kTanh || p.activation == Activation::kRelu,
                "activation must be one of enum Activation");
  FASTRNN_CHECK(p.T >= 1, "T must be at least 1, got " << p.T);
  FASTRNN_CHECK(p.B >= 0, "B must not be negative, got " << p.B);
  FASTRNN_CHECK(p.I >= 0, "I must not be negative, got " << p.I);
  FASTRNN_CHECK(p.H >= 1, "H must be at least 1, got " << p.H);
  FASTRNN_CHECK(p.P >= 0 && p.P < p.H, "P must be in [0, H) = [0, " << p.H << "), got " << p.P);
  FASTRNN_CHECK(p.P == 0 || cell_info(p.cell).projects,
                "P must be 0: cell " << cell_info(p.cell).name << " has no projection");
  // Every buffer then has less than 2^62 bytes, and no index overflows.
  constexpr double kMost = 1 << 28;
  const double width = 64.0 * (double(p.I) + double(p.H) + 64);
  FASTRNN_CHECK((double(p.T) + 256) * (double(p.B) + 1) * width < kMost * kMost * 64 &&
                    (double(p.H) + 64) * width < kMost * kMost * 64,
                "T, B, I and H must be small enough for buffers below 2^62 bytes, got "
                    << p.T << ", " << p.B << ", " << p.I << ", " << p.H);
  FASTRNN_CHECK(p.directions == 1 || p.directions == 2,
                "directions must be 1 or 2, got " << p.directions);
  FASTRNN_CHECK(p.directions == 1 || !p.reverse, "reverse needs directions = 1");
  FASTRNN_CHECK(p.checkpoint_every >= 0,
                "checkpoint_every must not be negative, got " << p.checkpoint_every);
  FASTRNN_CHECK(p.samples >= 1 && p.B % p.samples == 0,
                "samples must be at least 1 and divide B = " << p.B << ", got " << p.samples);
  FASTRNN_CHECK(p.dtype != Dtype::kInt8 || !p.training, "training must be false for 8-bit weights");
  FASTRNN_CHECK(p.threads >= 1, "threads must be at least 1, got " << p.threads);
  FASTRNN_CHECK(p.activation == Activation::kTanh || cell_info(p.cell).has_relu,
                "activation must be tanh: cell " << cell_info(p.cell).name << " has no other");
}

void check_offsets(const Problem& p, const int64_t* offsets) {
  if (!p.ragged) {
    FASTRNN_CHECK(!offsets, "offsets must be null unless the problem is ragged");
    return;
  }
  FASTRNN_CHECK(offsets && offsets[0] == 0 && offsets[1] == p.B,
                "offsets must start with 0, B = " << p.B);
  for (int64_t t = 1; t < p.T; ++t) {
    // Compared before they are subtracted, which may overflow where they do not grow.
    FASTRNN_CHECK(
        offsets[t + 1] > offsets[t] && offsets[t + 1] - offsets[t] <= offsets[t] - offsets[t - 1],
        "offsets must grow by at least 1 and never faster than before, at step " << t);
    FASTRNN_CHECK((offsets[t + 1] - offsets[t]) % p.samples == 0,
                  "offsets must be multiples of samples = " << p.samples << ", at step " << t);
  }
}

// The rows of a padded batch, and which of them a table names.
class PaddedRows {
 public:
  PaddedRows(const Problem& p, const int64_t* offsets, const RowTable& table) : table_(table) {
    if (!table.rows) return;
    FASTRNN_CHECK(p.ragged, "table must be empty unless the problem is ragged");
    int64_t count = 0;
    FASTRNN_CHECK(table.T >= 0 && table.B >= 0 && !__builtin_mul_overflow(table.T, table.B, &count),
                  "table.T and table.B must not be negative, nor their product beyond 64 bits");
    const int64_t named = offsets[p.T];
    FASTRNN_CHECK(named <= count, "table.rows must be in [0, T * B) = [0, "
                                      << table.T << " * " << table.B << ") and none twice, but has "
                                      << named);
    is_named_.resize(static_cast<size_t>(count));
    for (int64_t i = 0; i < named; ++i) {
      const auto row = static_cast<uint64_t>(table.rows[i]);
      FASTRNN_CHECK(row < is_named_.size() && !is_named_[row],
                    "table.rows must be in [0, T * B) = [0, "
                        << table.T << " * " << table.B << ") and none twice, got " << table.rows[i]
                        << " at " << i);
      is_named_[row] = 1;
    }
  }

  // Sets the other rows to zero.
  void clear(void* data, Strides strides, int64_t features, Dtype dtype) const {
    if (!data) return;
    constexpr int64_t kBytes[] = {4, 8, 2, 2, 4};
    const int64_t size = kBytes[int(dtype)];
    char* row = static_cast<char*>(data);
    size_t i = 0;
    for (int64_t t = 0; t < table_.T && table_.rows; ++t)
      for (int64_t b = 0; b < table_.B; ++b, ++i)
        if (!is_named_[i])
          memset(row + (t * strides.step + b * strides.row) * size, 0, size_t(features * size));
  }

 private:
  const RowTable& table_;
  std::vector<uint8_t> is_named_;
};

// States kept for the backward pass, were it to run now.
bool needs_reserve(const Problem& p) {
  const CellInfo info = cell_info(p.cell);
  return p.checkpoint_every ? info.states > 1 : info.saved > 0;
}

void check_weights(const Problem& p, const Weights* weights) {
  for (int d = 0; d < p.directions; ++d) {
    const Weights& w = weights[d];
    FASTRNN_CHECK(w.w_hh && (w.w_ih || p.I == 0),
                  "weights " << d << ": w_ih and w_hh must be given");
    FASTRNN_CHECK(!p.bias || (w.b_ih && w.b_hh),
                  "weights " << d << ": b_ih and b_hh must be given");
    FASTRNN_CHECK(p.P == 0 || w.w_hr, "weights " << d << ": w_hr must be given");
    if (p.dtype == Dtype::kInt8)
      FASTRNN_CHECK(w.scale_ih && w.scale_hh && (p.P == 0 || w.scale_hr),
                    "weights " << d << ": scales must be given with 8-bit weights");
  }
}

Weights used_weights(const Problem& p, Weights w) {
  if (!p.bias) w.b_ih = w.b_hh = nullptr;
  return w;
}

}  // namespace

Sizes sizes(const Problem& problem) {
  check_problem(problem);
  Sizes sizes;
  kernels_for(problem).forward_sizes(problem, sizes);
  if (kernels_for(problem).backward_sizes) kernels_for(problem).backward_sizes(problem, sizes);
  return sizes;
}

bool forward(const Problem& problem, const ForwardBuffers& buffers) {
  check_problem(problem);
  check_offsets(problem, buffers.offsets);
  const PaddedRows padded(problem, buffers.offsets, buffers.table);
  ForwardBuffers b = buffers;
  if (b.repack) {
    check_weights(problem, b.weights);
    for (Weights& w : b.weights) w = used_weights(problem, w);
  }
  if (!b.packed) {
    Sizes sizes;
    kernels_for(problem).forward_sizes(problem, sizes);
    FASTRNN_CHECK(b.repack && sizes.packs_as_used,
                  "packed must be given, unless repack and Sizes::packs_as_used are true");
  }
  FASTRNN_CHECK(b.workspace, "workspace must be given");
  if (problem.B > 0) {
    FASTRNN_CHECK((b.x || problem.I == 0) && b.y && b.h_n, "x, y and h_n must be given");
    FASTRNN_CHECK(b.c_n || cell_info(problem.cell).states == 1, "c_n must be given");
    FASTRNN_CHECK(b.reserve || !problem.training || !needs_reserve(problem),
                  "reserve must be given to train");
  }
  const int64_t outputs = problem.directions * (problem.P ? problem.P : problem.H);
  padded.clear(b.y, b.y_strides, outputs, problem.dtype);
  return kernels_for(problem).forward(problem, b);
}

bool backward(const Problem& problem, const BackwardBuffers& buffers) {
  check_problem(problem);
  check_offsets(problem, buffers.offsets);
  const PaddedRows padded(problem, buffers.offsets, buffers.table);
  FASTRNN_CHECK(problem.training, "training must be true: forward kept nothing otherwise");
  check_weights(problem, buffers.weights);
  FASTRNN_CHECK(buffers.workspace, "workspace must be given");
  BackwardBuffers b = buffers;
  for (Weights& w : b.weights) w = used_weights(problem, w);
  for (WeightGradients& g : b.gradients)
    if (!problem.bias) g.b_ih = g.b_hh = nullptr;
  if (problem.B > 0) {
    FASTRNN_CHECK((b.x || problem.I == 0) && b.y, "x and y must be given");
    FASTRNN_CHECK(b.reserve || !needs_reserve(problem), "reserve must be given");
  }
  padded.clear(b.dx, b.dx_strides, problem.I, problem.dtype);
  return kernels_for(problem).backward(problem, b);
}

namespace {

Problem second_order_problem(const Problem& problem) {
  Problem p = problem;
  p.I = 0;  // there is no input product, by which threads would be chosen
  check_problem(p);
  FASTRNN_CHECK(p.directions == 1, "directions must be 1, got " << p.directions);
  FASTRNN_CHECK(p.samples == 1, "samples must be 1, got " << p.samples);
  FASTRNN_CHECK(kernels_for(p).second_order, "dtype must be float32 or float64");
  FASTRNN_CHECK(p.P == 0, "P must be 0, got " << p.P);
  return p;
}

}  // namespace

size_t second_order_workspace(const Problem& problem, int64_t N) {
  const Problem p = second_order_problem(problem);
  FASTRNN_CHECK(N >= 0 && N <= p.T * p.B, "N must be in [0, T * B], got " << N);
  FASTRNN_CHECK(p.ragged || N == p.T * p.B, "N must be T * B, the batch not being ragged");
  return kernels_for(p).second_order_workspace(p, N);
}

bool second_order(const Problem& problem, const SecondOrderBuffers& b) {
  const Problem p = second_order_problem(problem);
  check_offsets(p, b.offsets);
  FASTRNN_CHECK(b.workspace, "workspace must be given");
  if (p.B == 0) return true;
  FASTRNN_CHECK(b.w_hh && b.wx && b.rh && b.dgates && b.v_before && b.v_y && b.d,
                "w_hh, wx, rh, dgates, v_before, v_y and d must be given");
  for (int s = 0; s < cell_info(p.cell).states; ++s)
    FASTRNN_CHECK(b.before[s] && b.v_initial[s] && b.v_final[s] && b.d_initial[s],
                  "before, v_initial, v_final and d_initial must be given, of state " << s);
  return kernels_for(p).second_order(p, b);
}

namespace {

// Zeroed memory of a stream, in large pages if it has room for one. Smaller memory is a part of the
// heap, which would be cut in pieces by what is asked for a part of it.
class StreamMemory {
 public:
  explicit StreamMemory(size_t bytes)
      : align_(std::align_val_t(bytes < kLargePage ? 64 : kLargePage)),
        start_(::operator new(bytes, align_)) {
    if (bytes >= kLargePage) advise_large_pages(start_, bytes);
    memset(start_, 0, bytes);
  }
  ~StreamMemory() { ::operator delete(start_, align_); }
  StreamMemory(const StreamMemory&) = delete;
  StreamMemory& operator=(const StreamMemory&) = delete;
  void* start() const { return start_; }

 private:
  static constexpr size_t kLargePage = 2 << 20;
  std::align_val_t align_;
  void* start_;
};

}  // namespace

struct Stream::Implementation {
  Implementation(const Problem& p, int count, const StreamKernels& functions, size_t bytes)
      : problem(p), layers(count), kernels(functions), memory(bytes), state(nullptr) {}

  Problem problem;
  int layers;
  StreamKernels kernels;
  StreamMemory memory;
  void* state;
};

Stream::Stream(const Problem& problem, int layers) : self_(nullptr) {
  Problem p;
  p.cell = problem.cell, p.dtype = problem.dtype, p.activation = problem.activation;
  p.B = problem.B, p.I = problem.I, p.H = problem.H, p.P = problem.P, p.bias = problem.bias;
  check_problem(p);
  FASTRNN_CHECK(problem.directions == 1 && !problem.reverse,
                "directions must be 1: a stream does not know the future");
  FASTRNN_CHECK(p.B >= 1, "B must be at least 1, got " << p.B);
  constexpr int kMostLayers = 1 << 16;
  FASTRNN_CHECK(layers >= 1 && layers <= kMostLayers,
                "layers must be in [1, " << kMostLayers << "], got " << layers);
  const StreamKernels& kernels = kernels_for(p).stream;
  size_t bytes = 0;
  kernels.create(p, layers > 1 ? 2 : 1, nullptr, bytes);
  FASTRNN_CHECK(double(bytes) * layers < double(size_t(1) << 62),
                "layers must be few enough for less than 2^62 bytes, got " << layers);
  kernels.create(p, layers, nullptr, bytes);
  self_ = new Implementation(p, layers, kernels, bytes);
  self_->state = kernels.create(p, layers, self_->memory.start(), bytes);
  kernels.set_state(self_->state, nullptr, nullptr);
}

Stream::~Stream() { delete self_; }

void Stream::load(const Weights* weights) {
  FASTRNN_CHECK(weights, "weights must be given");
  std::vector<Weights> used(weights, weights + self_->layers);
  for (Weights& w : used) {
    check_weights(self_->problem, &w);
    w = used_weights(self_->problem, w);
  }
  self_->kernels.load(self_->state, used.data());
}

void Stream::step(const void* x, int64_t x_row, void* y, int64_t y_row) {
  self_->kernels.step(self_->state, x, x_row, y, y_row);
}

void Stream::set_state(const void* h, const void* c) {
  self_->kernels.set_state(self_->state, h, c);
}

void Stream::get_state(void* h, void* c) const {
  FASTRNN_CHECK(h && (c || cell_info(self_->problem.cell).states == 1),
                "h, and c of an LSTM, must be given");
  self_->kernels.get_state(self_->state, h, c);
}

CellInfo cell_info(Cell cell) { return current_isa().kernels().info[int(cell)]; }

Cell cell_from_name(const std::string& name) {
  std::string names;
  for (int i = 0; i < kCells; ++i) {
    const char* known = current_isa().kernels().info[i].name;
    if (name == known) return Cell(i);
    names += i ? std::string(", ") + known : known;
  }
  FASTRNN_CHECK(false, "cell must be one of " << names << ", got " << name);
  return Cell(0);
}

Fingerprint fingerprint(const void* const* pointers, const size_t* bytes, size_t count) {
  return current_isa().kernels().fingerprint(pointers, bytes, count);
}

double fma_peak(Dtype dtype, double seconds) {
  return current_isa().kernels().fma_peak(dtype, seconds);
}

double read_bandwidth(void* buffer, size_t bytes, double seconds) {
  return current_isa().kernels().read_bandwidth(buffer, bytes, seconds);
}

#ifndef FASTRNN_VERSION
#define FASTRNN_VERSION "0.0.0"
#endif
const char* version() { return FASTRNN_VERSION; }

}  // namespace fastrnn
