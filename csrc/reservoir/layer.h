// One layer of one member on a group of sequences: its weights as the step reads them, its states,
// and the step.
#pragma once

#include "product.h"

namespace fastrnn::FASTRNN_ISA {

using reservoir::Activation;

template <class T>
FASTRNN_HD Vec<T> activate(Activation f, Vec<T> x) {
  switch (f) {
    case Activation::kTanh:
      return tanh(x);
    case Activation::kRelu:
      return relu(x);
    case Activation::kSigmoid:
      return sigmoid(x);
    case Activation::kIdentity:
      break;
  }
  return x;
}

// The derivative from the value.
template <class T>
FASTRNN_HD Vec<T> activation_slope(Activation f, Vec<T> y) {
  using V = Vec<T>;
  switch (f) {
    case Activation::kTanh:
      return fnma(y, y, V(1));
    case Activation::kRelu:
      return relu_backward(y, V(1));
    case Activation::kSigmoid:
      return y * (V(1) - y);
    case Activation::kIdentity:
      break;
  }
  return V(1);
}

// [N,K] to blocks [ceil(N/16),K,16], zeros after the last row.
template <class T>
void pack_panels(const T* from, int64_t n, int64_t count, T* to) {
  for (int64_t b = 0; b < blocks_of(n); ++b)
    for (int64_t k = 0; k < count; ++k)
      for (int64_t i = 0; i < kBlock; ++i)
        *to++ = b * kBlock + i < n ? from[(b * kBlock + i) * count + k] : T(0);
}

// What one sequence brings to a step, and where its results go; absent: null.
template <class T>
struct Row {
  T* state = nullptr;  // extended(N) elements; after the step it is the former state
  T* next = nullptr;
  const T* u = nullptr;
  const T* fed_back = nullptr;
  const T* noise = nullptr;
  T* y = nullptr;
  T* activated = nullptr;
  T* sums = nullptr;     // of compressed rows: W state
  T* carried = nullptr;  // C state, where C is not the identity

  FASTRNN_HD void advance() {
    T* former = state;
    state = next, next = former;
  }
};

template <class T>
class Layer {
 public:
  using V = Vec<T>;

  Layer() = default;
  // Takes its memory from the arena, for up to `rows` sequences.
  Layer(int64_t n, int64_t inputs, int64_t fed_back, Activation f, const reservoir::Weights& w,
        int64_t rows, Arena& arena)
      : n_(n), inputs_(inputs), fed_back_(fed_back), f_(f) {
    const int64_t padded = blocks_of(n) * kBlock;
    w_ih_ = arena.take<T>(padded * inputs);
    w_fb_ = arena.take<T>(padded * fed_back);
    bias_ = arena.take<T>(padded);
    leak_ = arena.take<T>(padded);
    const bool compressed = w.recurrent.layout == Layout::kRows;
    const bool carries = w.carry.layout != Layout::kNone;
    states_ = arena.take<T>(rows * extended(n) * kStates);
    // Sizes do not depend on the layout: whoever asks for them has no weights yet.
    sums_ = arena.take<T>(rows * extended(n) * 2);
    scratch_ = arena.take<T>(interleaved_elements<T>(n));
    compressed_ = compressed, carries_ = carries;
  }

  void load(const reservoir::Weights& w, int64_t member) {
    const int64_t padded = blocks_of(n_) * kBlock;
    pack_panels(at(w.w_ih, member * n_ * inputs_), n_, inputs_, w_ih_);
    pack_panels(at(w.w_fb, member * n_ * fed_back_), n_, fed_back_, w_fb_);
    for (int64_t i = 0; i < padded; ++i) {
      bias_[i] = w.bias && i < n_ ? at(w.bias, member * n_)[i] : T(0);
      leak_[i] = i < n_ ? at(w.leak, member * n_)[i] : T(0);
    }
    w_ = MatrixView<T>(w.recurrent, n_, member);
    carry_ = MatrixView<T>(w.carry, n_, member);
  }

  // The row of states of sequence `i` of the group, with the state h, or zeros.
  Row<T> make_row(int64_t i, const T* h) const {
    Row<T> row;
    row.state = states_ + i * extended(n_) * kStates;
    row.next = row.state + extended(n_);
    if (compressed_) row.sums = sums_ + i * extended(n_) * 2;
    if (carries_) row.carried = sums_ + i * extended(n_) * 2 + extended(n_);
    for (int64_t j = 0; j < extended(n_); ++j) row.state[j] = row.next[j] = 0;
    for (int64_t j = 0; h && j < n_; ++j) row.state[j] = h[j];
    wrap(row.state, n_);
    return row;
  }

  // One step of `count` sequences, of rows[active[0]], rows[active[1]], ...
  void step(Row<T>* rows, const int64_t* active, int64_t count) const {
    const auto states = [&](int64_t r) -> const T* { return rows[active[r]].state; };
    if (compressed_)
      multiply(w_, count, states, [&](int64_t r) { return rows[active[r]].sums; }, scratch_);
    if (carries_)
      multiply(carry_, count, states, [&](int64_t r) { return rows[active[r]].carried; }, scratch_);
    with_tiles(w_, [&](const auto& matrix) {
      for (int64_t b = 0; b < blocks_of(n_); ++b) step_block(matrix, b, rows, active, count);
    });
    for (int64_t r = 0; r < count; ++r) {
      wrap(rows[active[r]].next, n_);
      rows[active[r]].advance();
    }
  }

  int64_t units() const { return n_; }

 private:
  static constexpr int64_t kStates = 2;

  static const T* at(const void* p, int64_t offset) { return static_cast<const T*>(p) + offset; }

  template <class M>
  FASTRNN_HD void step_block(const M& matrix, int64_t block, Row<T>* rows, const int64_t* active,
                             int64_t count) const {
    int64_t r = 0;
    for (; r + kTileRows <= count; r += kTileRows)
      step_tile<kTileRows>(matrix, block, rows, active + r);
    for (; r < count; ++r) step_tile<1>(matrix, block, rows, active + r);
  }

  template <int R, class M>
  FASTRNN_HD void step_tile(const M& matrix, int64_t block, Row<T>* rows,
                            const int64_t* active) const {
    const Row<T>* row[R];
    for (int r = 0; r < R; ++r) row[r] = rows + active[r];
    for (int lane = 0; lane < kBlock; lane += V::kWidth) {
      const int64_t first = block * kBlock + lane;
      if (first >= n_) return;
      Sums<T, R> sums(V::load(bias_ + first));
      sums.add(w_ih_ + block * inputs_ * kBlock + lane, inputs_,
               [&](int r, int64_t k) { return V(row[r]->u[k]); });
      if (fed_back_)
        sums.add(w_fb_ + block * fed_back_ * kBlock + lane, fed_back_,
                 [&](int r, int64_t k) { return V(row[r]->fed_back[k]); });
      matrix.add(sums, block, lane, [&](int r) -> const T* { return row[r]->state; });
      const V leak = V::load(leak_ + first);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) finish(*row[r], first, leak, sums.total(r));
    }
  }

  FASTRNN_HD void finish(const Row<T>& row, int64_t first, V leak, V sum) const {
    const int n = int(n_ - first < V::kWidth ? n_ - first : V::kWidth);
    if (row.sums) sum = sum + V::load(row.sums + first);
    if (row.noise) sum = sum + V::load(row.noise + first, n);
    const V f = activate(f_, sum);
    const V old = V::load((row.carried ? row.carried : row.state) + first);
    const V next = fma(leak, f, (V(1) - leak) * old);
    next.store(row.next + first);
    if (row.y) next.store(row.y + first, n);
    if (row.activated) f.store(row.activated + first, n);
  }

  int64_t n_ = 0, inputs_ = 0, fed_back_ = 0;
  Activation f_ = Activation::kTanh;
  bool compressed_ = false, carries_ = false;
  T *w_ih_ = nullptr, *w_fb_ = nullptr, *bias_ = nullptr, *leak_ = nullptr;
  T *states_ = nullptr, *sums_ = nullptr, *scratch_ = nullptr;
  MatrixView<T> w_, carry_;
};

}  // namespace fastrnn::FASTRNN_ISA
