// Echo state networks: reservoirs with fixed weights, closed-loop forecasts, and the float64 sums
// that a linear readout is fitted from. As in fastrnn.h, the caller owns every buffer.
//
//   x_t = (1 - a) C x_{t-1} + a f(W x_{t-1} + W_ih u_t + W_fb v_t + bias + noise_t),
//
// a the leak of each unit, C the identity unless `carry` is given, v what the readout feeds back.
// M reservoirs of the same sizes (a population) run in one call.
//
// Dimensions: M members, T steps, B sequences, I inputs, F fed-back values, N units, O outputs.
#pragma once

#include <fastrnn/fastrnn.h>

namespace fastrnn::reservoir {

enum class Activation { kTanh, kRelu, kIdentity, kSigmoid };

// Rows of a matrix come in blocks of 16 on every machine; the last one is filled with zeros.
constexpr int64_t kBlock = 16;

// How a square matrix is stored.
//   kStrips: each block has K strips of 16 weights; that of row 16 b + i in a strip that starts at
//     column c is element (16 b + i, (c + i) mod N). Every vector of weights then meets adjacent
//     states, whatever the ISA. Cycles and delay lines are single strips, as are shifted diagonals.
//   kRows: compressed rows; member m's row i has entries rows[m (N + 1) + i] to rows[... + i + 1].
//   kPanels: dense, transposed block by block: element (16 b + i, k) at [b][k][i].
//   kWindows: of each block and each window of 32 columns, vectors of 16 weights, one for each row,
//     with the place of each one's column in the window; a row with fewer has zeros. Window w of
//     block b has vectors rows[m (blocks windows + 1) + b windows + w] to rows[... + 1]. Good where
//     a register can be looked up in (AVX-512).
enum class Layout { kNone, kStrips, kRows, kPanels, kWindows };

constexpr int64_t kWindow = 32;

struct Matrix {
  Layout layout = Layout::kNone;
  // [M,ceil(N/16),K,16], [entries], [M,ceil(N/16),N,16] or [vectors,16]
  const void* weights = nullptr;
  // [M,ceil(N/16),K] or [entries]: uint16_t, or int32_t if `wide`; of kWindows [vectors,16] uint8_t
  const void* columns = nullptr;
  const int64_t* rows = nullptr;  // [M,N+1] or [M,ceil(N/16) ceil(N/32)+1], kRows and kWindows only
  int64_t K = 0;                  // kStrips only
  bool wide = false;
};

struct Weights {
  const void* w_ih = nullptr;  // [M,N,I]
  const void* w_fb = nullptr;  // [M,N,F]
  const void* bias = nullptr;  // [M,N], null: zeros
  const void* leak = nullptr;  // [M,N]
  Matrix recurrent;
  Matrix carry;  // kNone: the identity
};

struct Problem {
  Dtype dtype = Dtype::kFloat32;  // or kFloat64
  Activation activation = Activation::kTanh;
  int64_t M = 1, T = 1, B = 1, I = 1, F = 0, N = 1;
  bool reverse = false;  // each sequence from its own last step to its first
  int threads = 1;
};

// Elements from one member, step or sequence to the next; features are adjacent.
struct Strides {
  int64_t member = 0, step = 0, row = 0;
};

struct ForwardBuffers {
  Weights weights;
  const void* x = nullptr;  // [M,T,B,I] by strides
  Strides x_strides;
  const void* feedback = nullptr;  // [M,T,B,F] by strides
  Strides feedback_strides;
  const void* noise = nullptr;       // [M,T,B,N], null: none
  const int64_t* lengths = nullptr;  // [B], in [0, T]; null: all T
  const void* h0 = nullptr;          // [M,B,N], null: zeros
  void* y = nullptr;                 // [M,T,B,N] by strides; overwritten, zeros past a length
  Strides y_strides;
  void* h_n = nullptr;        // [M,B,N]; overwritten
  void* activated = nullptr;  // [M,T,B,N], f(...) for backward(); overwritten up to each length
  void* workspace = nullptr;  // workspace_bytes(); overwritten
  Interrupt interrupt;
};

struct BackwardBuffers {
  Weights weights;
  const int64_t* lengths = nullptr;
  const void* activated = nullptr;  // from forward()
  const void* dy = nullptr;         // [M,T,B,N] by strides
  Strides dy_strides;
  const void* dh_n = nullptr;  // [M,B,N], null: zeros
  void* dx = nullptr;          // [M,T,B,I] by strides; overwritten; null: not wanted
  Strides dx_strides;
  void* dfeedback = nullptr;  // [M,T,B,F] by strides; overwritten; null: not wanted
  Strides dfeedback_strides;
  void* dh0 = nullptr;  // [M,B,N]; overwritten
  void* workspace = nullptr;
  Interrupt interrupt;
};

// All calls but those for sizes return whether they came to their end, see Interrupt.
size_t workspace_bytes(const Problem& problem);
bool forward(const Problem& problem, const ForwardBuffers& buffers);
bool backward(const Problem& problem, const BackwardBuffers& buffers);

constexpr int kMaxLayers = 16;

// Closed loop: out_j = W_out [states of all layers; u] + b_out, then one step on
// u = [out_j; drivers_j], or with F = O on u = drivers_j and v = out_j. Each member is a network of
// its own, or all are one: a ring, whose members read parts of the outputs of one readout,
// u of member m = out_j[reads[m]], with neither drivers nor F.
struct Forecast {
  Problem problem;  // T is the horizon; I and F are those of the first layer, others have I = N
  int layers = 1;
  int64_t O = 1;
  bool square = false;      // states 1, 3, ... enter the readout squared
  bool sees_input = false;  // W_out has I (of a ring O) more columns, for the last input
  bool ring = false;
};

struct ForecastBuffers {
  Weights weights[kMaxLayers];
  const double* w_out = nullptr;   // [M,O,layers*N (+ I)]; of a ring [O,M*layers*N (+ O)]
  const double* b_out = nullptr;   // [M,O], of a ring [O]; null: zeros
  const int64_t* reads = nullptr;  // [M,I], in [0, O); of a ring only
  const void* drivers = nullptr;   // [M,T,B,I - O or I] by strides
  Strides drivers_strides;
  // [M,B,I], of a ring [B,O]: the last input; overwritten by the last one of the forecast
  void* u = nullptr;
  void* state = nullptr;  // [M,layers,B,N]; overwritten by the state after the forecast
  double* out = nullptr;  // [M,T,B,O], of a ring [T,B,O], by strides; overwritten
  Strides out_strides;
  void* workspace = nullptr;
  Interrupt interrupt;
};

size_t workspace_bytes(const Forecast& forecast);
bool forecast(const Forecast& forecast, const ForecastBuffers& buffers);

// Closed loop over products of delayed inputs: with l = [u_t, u_{t-skip}, ..., 1] of `delays`
// inputs, feature p is the product over k of l[monomials[k][p]], and
// out_j = W_out [features; u] + b_out, u = [out_j; drivers_j].
struct Polynomial {
  Dtype dtype = Dtype::kFloat32;  // or kFloat64
  int64_t T = 1, B = 1, I = 1, O = 1, delays = 1, skip = 1, order = 1, features = 1;
  bool square = false;      // features 1, 3, ... enter the readout squared
  bool sees_input = false;  // W_out has I more columns, for u
  int threads = 1;

  int64_t window() const { return (delays - 1) * skip + 1; }
};

struct PolynomialBuffers {
  const int64_t* monomials = nullptr;  // [order,features], in [0, delays*I]
  const double* w_out = nullptr;       // [O,features (+ I)]
  const double* b_out = nullptr;       // [O], null: zeros
  const void* drivers = nullptr;       // [T,B,I - O] by strides
  Strides drivers_strides;
  void* window = nullptr;  // [window,B,I], the present input last; overwritten by the last window
  double* out = nullptr;   // [T,B,O] by strides; overwritten
  Strides out_strides;
  void* workspace = nullptr;
  Interrupt interrupt;
};

size_t workspace_bytes(const Polynomial& polynomial);
bool forecast(const Polynomial& polynomial, const PolynomialBuffers& buffers);

// Sums over n rows in float64, of X = states - shift and Y = targets - target_shift:
// gram += X^T diag(w) X (upper triangle), cross += X^T diag(w) Y, sums += X^T w.
struct Gram {
  Dtype states = Dtype::kFloat32, targets = Dtype::kFloat32;  // or kFloat64
  int64_t n = 0, N = 1, O = 0;
  int threads = 1;
};

struct GramBuffers {
  const void* states = nullptr;  // [n,N], rows `states_row` apart
  int64_t states_row = 0;
  const void* targets = nullptr;  // [n,O], rows `targets_row` apart
  int64_t targets_row = 0;
  const double* shift = nullptr;         // [N], null: zeros
  const double* target_shift = nullptr;  // [O], null: zeros
  const double* row_weights = nullptr;   // [n], none negative; null: ones
  double* gram = nullptr;                // [N,N]; added to
  double* cross = nullptr;               // [N,O]; added to
  double* sums = nullptr;                // [N]; added to
  void* workspace = nullptr;
  Interrupt interrupt;
};

size_t workspace_bytes(const Gram& gram);
bool accumulate(const Gram& gram, const GramBuffers& buffers);

}  // namespace fastrnn::reservoir
