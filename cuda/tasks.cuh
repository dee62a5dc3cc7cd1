// The steps of a layer as tasks of step_kernel.
#pragma once

#include "step.cuh"

namespace fastrnn::cuda {

// The most units, in eights, of which all gates fit in 32 rows.
constexpr int units_of(int gates) { return 32 / gates / 8 * 8; }

// h(t-1) W_hh^T, then the cell.
template <class C, class F>
struct ForwardGates {
  using Format = F;
  using Storage = typename F::Storage;
  using Value = typename F::Value;
  static constexpr int kTiles = 2, kGates = C::kRh, kUnits = units_of(C::kRh);
  static constexpr bool kTransposed = false;

  ForwardCell<C, F> cell;
  const Storage* weights[2];
  Value* states;  // [D,B,H] the further state
  int step, rows;

  FASTRNN_DEVICE int width() const { return cell.H; }
  FASTRNN_DEVICE int length() const { return cell.O; }
  FASTRNN_DEVICE int time(int d) const { return cell.time.time(d, step); }
  FASTRNN_DEVICE bool alive(int d, int b) const { return b < cell.time.alive(time(d)); }
  FASTRNN_DEVICE const Storage* operand(int d, int b) const { return cell.operand(d, time(d), b); }
  FASTRNN_DEVICE Value start(int d, int gate, int u) const { return cell.bias(d, gate, u); }
  FASTRNN_DEVICE void finish(int d, int b, int u, const Value (&sums)[kGates]) const {
    const int64_t unit = (static_cast<int64_t>(d) * cell.time.B + b) * cell.H + u;
    cell.finish(d, time(d), b, u, sums, states + (C::kState > 1 ? unit : 0));
  }
};

// One sum for each unit, of a row that the derived task names.
template <class Cell, int kTilesOfTask, bool kTransposedOfTask>
struct PlainTask {
  using Format = typename Cell::Format;
  using Storage = typename Format::Storage;
  using Value = typename Format::Value;
  static constexpr int kTiles = kTilesOfTask, kGates = 1, kUnits = kTiles * 16;
  static constexpr bool kTransposed = kTransposedOfTask;

  Cell cell;
  const Storage* weights[2];
  int step, rows;

  FASTRNN_DEVICE int time(int d) const { return cell.time.time(d, step); }
  FASTRNN_DEVICE bool alive(int d, int b) const { return b < cell.time.alive(time(d)); }
  FASTRNN_DEVICE Value start(int, int, int) const { return 0; }
};

// h = m W_hr^T.
template <class C, class F>
struct ForwardProjection : PlainTask<ForwardCell<C, F>, 2, false> {
  using Base = PlainTask<ForwardCell<C, F>, 2, false>;
  using Base::cell;
  using typename Base::Storage;
  using typename Base::Value;

  FASTRNN_DEVICE int width() const { return cell.O; }
  FASTRNN_DEVICE int length() const { return cell.H; }
  FASTRNN_DEVICE const Storage* operand(int d, int b) const {
    return this->alive(d, b) ? cell.full + (static_cast<int64_t>(d) * cell.time.B + b) * cell.H
                             : nullptr;
  }
  FASTRNN_DEVICE void finish(int d, int b, int o, const Value (&sums)[1]) const {
    cell.put(d, this->time(d), b, o, narrow<Storage>(sums[0]));
  }
};

// What the steps of a backward pass leave for one another.
template <class F>
struct Carried {
  typename F::Value *direct, *states;  // [D,B,H]
};

// The gates' gradients of the step after, times W_hh: the gradient of h; then the cell.
template <class C, class F>
struct BackwardChain : PlainTask<BackwardCell<C, F>, 1, true> {
  using Base = PlainTask<BackwardCell<C, F>, 1, true>;
  using Base::cell;
  using typename Base::Storage;
  using typename Base::Value;
  Carried<F> carried;

  FASTRNN_DEVICE int width() const { return cell.H; }
  FASTRNN_DEVICE int length() const { return C::kRh * cell.H; }
  FASTRNN_DEVICE const Storage* operand(int d, int b) const {
    return cell.operand(d, this->time(d), b);
  }
  FASTRNN_DEVICE void finish(int d, int b, int u, const Value (&sums)[1]) const {
    const int t = this->time(d);
    const int64_t unit = cell.unit(d, b, u);
    const Value direct = C::kHoldsOutput ? carried.direct[unit] : Value(0);
    cell.finish(d, t, b, u, cell.total(d, t, b, u, sums[0], direct),
                carried.direct + (C::kHoldsOutput ? unit : 0),
                carried.states + (C::kState > 1 ? unit : 0));
  }
};

// With a projection: the gradient of its output.
template <class C, class F>
struct BackwardOutput : PlainTask<BackwardCell<C, F>, 1, true> {
  using Base = PlainTask<BackwardCell<C, F>, 1, true>;
  using Base::cell;
  using typename Base::Storage;
  using typename Base::Value;
  Storage* projected[2];  // [N,P]

  FASTRNN_DEVICE int width() const { return cell.O; }
  FASTRNN_DEVICE int length() const { return C::kRh * cell.H; }
  FASTRNN_DEVICE const Storage* operand(int d, int b) const {
    return cell.operand(d, this->time(d), b);
  }
  FASTRNN_DEVICE void finish(int d, int b, int o, const Value (&sums)[1]) const {
    const int t = this->time(d);
    projected[d][cell.time.row(t, b) * cell.O + o] =
        narrow<Storage>(cell.total(d, t, b, o, sums[0], 0));
  }
};

// ... that times W_hr: the gradient of the output before it; then the cell.
template <class C, class F>
struct BackwardProjection : PlainTask<BackwardCell<C, F>, 1, true> {
  using Base = PlainTask<BackwardCell<C, F>, 1, true>;
  using Base::cell;
  using typename Base::Storage;
  using typename Base::Value;
  Storage* projected[2];
  Carried<F> carried;

  FASTRNN_DEVICE int width() const { return cell.H; }
  FASTRNN_DEVICE int length() const { return cell.O; }
  FASTRNN_DEVICE const Storage* operand(int d, int b) const {
    return this->alive(d, b) ? projected[d] + cell.time.row(this->time(d), b) * cell.O : nullptr;
  }
  FASTRNN_DEVICE void finish(int d, int b, int u, const Value (&sums)[1]) const {
    cell.finish(d, this->time(d), b, u, sums[0], carried.direct,
                carried.states + (C::kState > 1 ? cell.unit(d, b, u) : 0));
  }
};

// The gradient of h0, when all steps are done.
template <class C, class F>
struct InitialGradient : PlainTask<BackwardCell<C, F>, 1, true> {
  using Base = PlainTask<BackwardCell<C, F>, 1, true>;
  using Base::cell;
  using typename Base::Storage;
  using typename Base::Value;
  Carried<F> carried;

  FASTRNN_DEVICE bool alive(int, int b) const { return b < cell.time.B; }
  FASTRNN_DEVICE int width() const { return cell.O; }
  FASTRNN_DEVICE int length() const { return C::kRh * cell.H; }
  FASTRNN_DEVICE const Storage* operand(int d, int b) const {
    return b < cell.time.B ? cell.gates(d, cell.time.first(d, b), b) : nullptr;
  }
  FASTRNN_DEVICE void finish(int d, int b, int o, const Value (&sums)[1]) const {
    const Value direct = C::kHoldsOutput ? carried.direct[cell.unit(d, b, o)] : Value(0);
    cell.dh0[(static_cast<int64_t>(d) * cell.time.B + b) * cell.O + o] =
        narrow<Storage>(sums[0] + direct);
  }
};

}  // namespace fastrnn::cuda
