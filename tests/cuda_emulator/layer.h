// One layer on the emulated GPU, with everything around it watched: buffers of exactly the size
// that the interface announces between guard zones, NaN where something will be written. The
// products over whole sequences, which a caller of cuda/api.h makes, are made here in double.
#pragma once

#include <stdexcept>

#include "../../cuda/api.h"
#include "../cpp/half.h"
#include "emulator.h"

namespace test {

namespace gpu = fastrnn::cuda;

// For a device on which only products take time, plans divide them over as many blocks as they can.
inline bool waiting_is_free = false;
inline gpu::Device device() {
  gpu::Device d = gpu::device_properties();
  if (waiting_is_free) d.barrier_us = 0, d.l2_gb_per_s = 1e9;
  return d;
}

// Gives the device no more shared memory than both persistent passes need: then weights go to
// registers, if there are few multiprocessors.
inline void squeeze(const Problem& p, bool tf32) {
  int64_t& shared = emulator::settings.shared_per_block;
  const auto fits = [&] {
    try {
      for (bool backward : {false, true})
        gpu::plan(p, device(), backward, tf32, gpu::Kernel::kPersistent);
    } catch (const std::invalid_argument&) {
      return false;
    }
    return true;
  };
  constexpr int64_t kStep = 2048;
  while (fits()) shared -= kStep;
  shared += kStep;
}

template <class T>
class Layer {
 public:
  Layer(const Setup& setup, const Geometry& g, const Inputs& in, bool tf32, gpu::Kernel kernel)
      : setup_(setup), p_(setup_.problem), g_(g), in_(in), cell_(gpu::layout(p_.cell)) {
    p_.dtype = kDtype<T>, p_.ragged = !setup.lengths.empty();
    const gpu::Device on = device();
    forward_plan_ = gpu::plan(p_, on, false, tf32, kernel);
    // No persistent kernel goes back through a projection.
    backward_plan_ = gpu::plan(p_, on, true, tf32, p_.P ? gpu::Kernel::kStep : kernel);
    const int64_t O = g.O, states = p_.directions * p_.B, gates = g.G * p_.H;
    const gpu::Sizes sizes = gpu::sizes(p_, forward_plan_);
    for (int64_t d = 0; d < g.D; ++d) make_wx(d, gates);
    for (int64_t d = 0; d < g.D; ++d) {
      load(w_hh_[d], in.w[d][1]), load(w_hr_[d], in.w[d][4]);
      if (p_.bias) load(b_hh_[d], in.w[d][3]);
      make(dgates_[d], g.N * cell_.gradients * p_.H), make(dprojected_[d], g.N * p_.P);
    }
    if (setup.given.h0) load(h0_, in.h0);
    if (setup.given.c0) load(c0_, in.c0);
    if (setup.given.dh_n) load(dh_n_, in.dh_n);
    if (setup.given.dc_n) load(dc_n_, in.dc_n);
    if (setup.given.dy) load(dy_, in.dy);
    make(y_, g.N * g.D * O), make(h_n_, states * O), make(dh0_, states * O);
    if (cell_.states > 1) make(c_n_, states * p_.H), make(dc0_, states * p_.H);
    if (p_.training) make(reserve_, g.D * g.N * sizes.saved * p_.H);
    make(workspace_, static_cast<int64_t>(sizes.workspace) + kAlignment);
    make(backward_workspace_,
         static_cast<int64_t>(gpu::sizes(p_, backward_plan_).workspace) + kAlignment);
  }

  const gpu::Plan& forward_plan() const { return forward_plan_; }
  const gpu::Plan& backward_plan() const { return backward_plan_; }

  void forward() {
    gpu::ForwardBuffers b;
    for (int64_t d = 0; d < g_.D; ++d) {
      b.wx[d] = at(wx_[d]), b.w_hh[d] = at(w_hh_[d]);
      b.b_hh[d] = at(b_hh_[d]), b.w_hr[d] = at(w_hr_[d]);
    }
    b.wx_strides = strides(wx_width()), b.y_strides = strides(g_.D * g_.O);
    b.offsets = p_.ragged ? g_.offsets.data() : nullptr;
    b.h0 = at(h0_), b.c0 = at(c0_), b.y = at(y_), b.h_n = at(h_n_), b.c_n = at(c_n_);
    b.reserve = at(reserve_), b.workspace = aligned(workspace_);
    gpu::forward(p_, forward_plan_, b, nullptr);
  }

  void backward() {
    gpu::BackwardBuffers b;
    for (int64_t d = 0; d < g_.D; ++d) {
      b.w_hh[d] = at(w_hh_[d]), b.w_hr[d] = at(w_hr_[d]);
      b.dgates[d] = at(dgates_[d]), b.dprojected[d] = at(dprojected_[d]);
    }
    b.y_strides = b.dy_strides = strides(g_.D * g_.O);
    b.offsets = p_.ragged ? g_.offsets.data() : nullptr;
    b.h0 = at(h0_), b.c0 = at(c0_), b.y = at(y_), b.reserve = at(reserve_), b.dy = at(dy_);
    b.dh_n = at(dh_n_), b.dc_n = at(dc_n_), b.dh0 = at(dh0_), b.dc0 = at(dc0_);
    b.workspace = aligned(backward_workspace_);
    gpu::backward(p_, backward_plan_, b, nullptr);
  }

  // What the engine would leave: outputs, and the whole-sequence gradients made of dgates.
  struct Found {
    std::vector<T> y, h_n, c_n, dh0, dc0, dgates;
    Values dx, dw[2][5];
  };
  Found results(bool gradients) {
    Found f;
    f.y = copy(y_), f.h_n = copy(h_n_), f.c_n = copy(c_n_);
    if (!gradients) return f;
    f.dh0 = copy(dh0_), f.dc0 = copy(dc0_), f.dgates = copy(dgates_[0]);
    f.dx = Values(static_cast<size_t>(g_.N * p_.I));
    for (int64_t d = 0; d < g_.D; ++d) {
      for (int i = 0; i < 5; ++i) f.dw[d][i] = Values(in_.w[d][i].size());
      for (int64_t b = 0; b < p_.B; ++b)
        for (int64_t t = 0; t < g_.length[size_t(b)]; ++t) accumulate(d, t, b, f);
    }
    return f;
  }
  void expect_clean() {
    for (auto* b : all_)
      EXPECT((*b)->guards_intact(), "written outside a buffer, " << describe(setup_));
    for (auto* b : bytes_)
      EXPECT((*b)->guards_intact(), "written outside the workspace, " << describe(setup_));
    EXPECT(!reserve_ || reserve_->guards_intact(), "outside the reserve, " << describe(setup_));
    for (auto& [buffer, before] : inputs_)
      EXPECT(!std::memcmp((*buffer)->data(), before.data(), before.size() * sizeof(T)),
             "an input was changed, " << describe(setup_));
  }

 private:
  using Value = typename ValueOf<T>::Type;
  template <class U>
  using Place = std::unique_ptr<Guarded<U>>;
  static constexpr int64_t kAlignment = 256;

  template <class U>
  static U* at(Place<U>& p) {
    return p ? p->data() : nullptr;
  }
  // The last aligned start from which the announced size fits: what lies behind it is a guard.
  static void* aligned(Place<unsigned char>& p) {
    const auto end = reinterpret_cast<uintptr_t>(p->data()) + uintptr_t(p->count());
    const auto size = uintptr_t(p->count() - kAlignment);
    return reinterpret_cast<void*>((end - size) / 16 * 16);
  }
  void make(Place<T>& p, int64_t n) {
    if (n == 0) return;
    p = std::make_unique<Guarded<T>>(n);
    all_.push_back(&p);
  }
  void make(Place<unsigned char>& p, int64_t n) {
    p = std::make_unique<Guarded<unsigned char>>(n);
    std::memset(p->data(), 0xff, static_cast<size_t>(n));
    bytes_.push_back(&p);
  }
  template <class U>
  std::enable_if_t<!std::is_same_v<U, T> && !std::is_same_v<U, unsigned char>> make(Place<U>& p,
                                                                                    int64_t n) {
    if (n) p = std::make_unique<Guarded<U>>(n);
  }
  void load(Place<T>& p, const Values& from) {
    make(p, static_cast<int64_t>(from.size()));
    for (size_t i = 0; i < from.size(); ++i) p->data()[i] = static_cast<T>(from[i]);
    if (p) inputs_.emplace_back(&p, std::vector<T>(p->data(), p->data() + p->count()));
  }
  int64_t wx_width() const { return g_.G * p_.H + kGap; }
  static constexpr int64_t kGap = 3;  // between rows of wx
  Strides strides(int64_t width) const { return {p_.B * width, width}; }

  void make_wx(int64_t d, int64_t gates) {
    make(wx_[d], g_.N * wx_width());
    for (int64_t row = 0; row < g_.N; ++row)
      for (int64_t j = 0; j < gates; ++j) {
        double sum = p_.bias ? in_.w[d][2][size_t(j)] : 0;
        for (int64_t i = 0; i < p_.I; ++i)
          sum += in_.w[d][0][size_t(j * p_.I + i)] * in_.x[size_t(row * p_.I + i)];
        wx_[d]->data()[row * wx_width() + j] = static_cast<T>(sum);
      }
  }

  double previous_output(int64_t d, int64_t t, int64_t b, int64_t o) {
    const bool back = d == 1 || p_.reverse;
    const int64_t before = back ? t + 1 : t - 1;
    if (before >= 0 && before < g_.length[size_t(b)])
      return double(y_->data()[(g_.row(before, b) * g_.D + d) * g_.O + o]);
    return in_.h0[size_t((d * p_.B + b) * g_.O + o)];
  }
  // What row (t, b) adds to the gradients of x and of the parameters.
  void accumulate(int64_t d, int64_t t, int64_t b, Found& f) {
    const int64_t row = g_.row(t, b), H = p_.H;
    for (int64_t j = 0; j < g_.G * H; ++j) {
      const auto gradient = [&](const int* of_gate) {
        return double(dgates_[d]->data()[(row * cell_.gradients + of_gate[j / H]) * H + j % H]);
      };
      const double da = gradient(cell_.input), dr = gradient(cell_.recurrent);
      for (int64_t i = 0; i < p_.I; ++i) {
        f.dx[size_t(row * p_.I + i)] += da * in_.w[d][0][size_t(j * p_.I + i)];
        f.dw[d][0][size_t(j * p_.I + i)] += da * in_.x[size_t(row * p_.I + i)];
      }
      for (int64_t o = 0; o < g_.O; ++o)
        f.dw[d][1][size_t(j * g_.O + o)] += dr * previous_output(d, t, b, o);
      f.dw[d][2][size_t(j)] += da, f.dw[d][3][size_t(j)] += dr;
    }
    const int64_t saved = cell_.saved + 1;
    for (int64_t o = 0; o < p_.P; ++o)
      for (int64_t u = 0; u < H; ++u)
        f.dw[d][4][size_t(o * H + u)] +=
            double(dprojected_[d]->data()[row * p_.P + o]) *
            double(reserve_->data()[((d * g_.N + row) * saved + cell_.saved) * H + u]);
  }
  template <class U>
  static std::vector<U> copy(Place<U>& p) {
    return p ? std::vector<U>(p->data(), p->data() + p->count()) : std::vector<U>();
  }

  Setup setup_;
  Problem& p_;
  const Geometry& g_;
  const Inputs& in_;
  gpu::Layout cell_;
  gpu::Plan forward_plan_, backward_plan_;
  Place<T> wx_[2], w_hh_[2], w_hr_[2], b_hh_[2], h0_, c0_, dh_n_, dc_n_, dy_;
  Place<T> y_, h_n_, c_n_, dgates_[2], dprojected_[2], dh0_, dc0_;
  Place<Value> reserve_;
  Place<unsigned char> workspace_, backward_workspace_;
  std::vector<Place<T>*> all_;
  std::vector<Place<unsigned char>*> bytes_;
  std::vector<std::pair<Place<T>*, std::vector<T>>> inputs_;
};

}  // namespace test
