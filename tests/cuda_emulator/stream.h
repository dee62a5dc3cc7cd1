// A stream on the emulated GPU against the scalar reference of its layers, one after the other.
// Every step is launched with the same arguments, as a captured graph would be replayed.
#pragma once

#include "compare.h"

namespace test {

struct StreamCase {
  Setup setup;  // of the first layer
  int layers = 1;
  bool tf32 = false;
};

template <class T>
class Stack {
 public:
  Stack(const StreamCase& c, uint64_t seed) : c_(c), p_(c_.setup.problem) {
    p_.dtype = kDtype<T>;
    Problem layer = p_;
    Values x;
    for (int l = 0; l < c.layers; ++l) {
      const Geometry g(layer, {});
      Inputs in = make_inputs(layer, g, c.setup.given, seed + uint64_t(l));
      if (layer.activation == Activation::kRelu) stay_off_the_kink(in);
      round_inputs<T>(in);
      if (l > 0) in.x = x;
      const Outputs out = Reference(layer, g, in).run(false);
      x = out.y;
      inputs_.push_back(in), outputs_.push_back(out);
      layer.I = g.O;
    }
  }

  // All steps; returns what came out: y of each step, h and c at the end.
  std::vector<T> run(double& worst) {
    load();
    const gpu::Plan plan = gpu::stream_plan(p_, c_.layers, device(), c_.tf32);
    blocks = plan.blocks;
    Guarded<unsigned char> state(static_cast<int64_t>(gpu::stream_bytes(p_, plan)) + kAlignment);
    std::memset(state.data(), 0xff, static_cast<size_t>(state.count()));
    void* base = aligned(state);
    gpu::stream_set_state(p_, plan, base, h0_ ? h0_->data() : nullptr, c0_ ? c0_->data() : nullptr,
                          nullptr);
    const int64_t O = outputs_size(), x_row = p_.I + 1, y_row = O + 2;
    Guarded<T> x(p_.B * x_row), y(p_.B * y_row);
    std::vector<T> found;
    const gpu::StreamBuffers b = {weights_.data(), x.data(), x_row, y.data(), y_row, base};
    for (int64_t t = 0; t < p_.T; ++t) {
      for (int64_t i = 0; i < p_.B * p_.I; ++i)
        x.data()[i / p_.I * x_row + i % p_.I] =
            static_cast<T>(inputs_[0].x[size_t(t * p_.B * p_.I + i)]);
      gpu::stream_step(p_, plan, b, nullptr);
      for (int64_t i = 0; i < p_.B * O; ++i) found.push_back(y.data()[i / O * y_row + i % O]);
    }
    expect("y", found, outputs_.back().y, worst);
    states(plan, base, found, worst);
    for (auto* guarded : {&x, &y}) EXPECT(guarded->guards_intact(), "outside x or y, " << name());
    EXPECT(state.guards_intact(), "written outside the state, " << name());
    return found;
  }
  int blocks = 0;

 private:
  using Value = typename ValueOf<T>::Type;
  static constexpr int64_t kAlignment = 256;
  int64_t outputs_size() const { return p_.P ? p_.P : p_.H; }
  std::string name() const {
    return describe(c_.setup) + " layers=" + std::to_string(c_.layers) +
           " blocks=" + std::to_string(blocks) + (c_.tf32 ? " tf32" : "");
  }
  static void* aligned(Guarded<unsigned char>& p) {
    const auto end = reinterpret_cast<uintptr_t>(p.data()) + uintptr_t(p.count());
    return reinterpret_cast<void*>((end - uintptr_t(p.count() - kAlignment)) / 16 * 16);
  }
  template <class U>
  std::unique_ptr<Guarded<U>> make(const Values& from) {
    auto to = std::make_unique<Guarded<U>>(static_cast<int64_t>(from.size()));
    for (size_t i = 0; i < from.size(); ++i) to->data()[i] = static_cast<U>(from[i]);
    return to;
  }

  void load() {
    Values h0, c0;
    weights_.clear(), parameters_.clear();
    for (const Inputs& in : inputs_) {
      h0.insert(h0.end(), in.h0.begin(), in.h0.end());
      c0.insert(c0.end(), in.c0.begin(), in.c0.end());
      const void* of[5] = {};
      for (int i = 0; i < 5; ++i) {
        if (in.w[0][i].empty() || (!p_.bias && (i == 2 || i == 3))) continue;
        parameters_.push_back(make<T>(in.w[0][i]));
        of[i] = parameters_.back()->data();
      }
      fastrnn::Weights w;
      w.w_ih = of[0], w.w_hh = of[1], w.b_ih = of[2], w.b_hh = of[3], w.w_hr = of[4];
      weights_.push_back(w);
    }
    if (c_.setup.given.h0) h0_ = make<T>(h0);
    if (c_.setup.given.c0 && !c0.empty()) c0_ = make<Value>(c0);
  }

  // h and c at the end, and that they can be read and written back between steps.
  void states(const gpu::Plan& plan, void* base, std::vector<T>& found, double& worst) {
    Values h_n, c_n;
    for (const Outputs& out : outputs_) {
      h_n.insert(h_n.end(), out.h_n.begin(), out.h_n.end());
      c_n.insert(c_n.end(), out.c_n.begin(), out.c_n.end());
    }
    Guarded<T> h(static_cast<int64_t>(h_n.size())), again(h.count());
    Guarded<Value> c(static_cast<int64_t>(c_n.size()));
    gpu::stream_get_state(p_, plan, base, h.data(), c.data(), nullptr);
    gpu::stream_set_state(p_, plan, base, h.data(), c.data(), nullptr);
    gpu::stream_get_state(p_, plan, base, again.data(), c.data(), nullptr);
    std::vector<T> ends(h.data(), h.data() + h.count()), cells;
    EXPECT(!std::memcmp(h.data(), again.data(), ends.size() * sizeof(T)), "state, " << name());
    for (int64_t i = 0; i < c.count(); ++i) cells.push_back(static_cast<T>(c.data()[i]));
    expect("h", ends, h_n, worst), expect("c", cells, c_n, worst);
    EXPECT(h.guards_intact() && c.guards_intact(), "outside h or c, " << name());
    found.insert(found.end(), ends.begin(), ends.end());
    found.insert(found.end(), cells.begin(), cells.end());
  }
  void expect(const char* what, const std::vector<T>& got, const Values& wanted, double& worst) {
    const Geometry g(p_, {});
    // Each layer adds its error to that of the one before.
    expect_close(what, got, wanted, c_.layers * tolerance_of<T>(p_, g, c_.tf32), worst, c_.setup);
  }

  StreamCase c_;
  Problem& p_;
  std::vector<Inputs> inputs_;
  std::vector<Outputs> outputs_;
  std::vector<fastrnn::Weights> weights_;
  std::vector<std::unique_ptr<Guarded<T>>> parameters_;
  std::unique_ptr<Guarded<T>> h0_;
  std::unique_ptr<Guarded<Value>> c0_;
};

// Every schedule gives the same bits, and those are right. Returns the plan's blocks.
template <class T>
int compare_stream(const StreamCase& c, uint64_t seed, double& worst,
                   const std::vector<emulator::Schedule>& schedules) {
  Stack<T> stack(c, seed);
  std::vector<T> first;
  for (size_t i = 0; i < schedules.size(); ++i) {
    use_schedule(schedules[i], seed + i);
    const auto found = stack.run(worst);
    if (i == 0) first = found;
    EXPECT(same_bits(found, first), "the schedule " << emulator::describe_schedule()
                                                    << " changes the result, "
                                                    << describe(c.setup));
  }
  return stack.blocks;
}

}  // namespace test
