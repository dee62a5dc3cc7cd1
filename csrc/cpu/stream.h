// One time step at a time through a stack of layers, with the chains of forward.h: the same
// products and maths in the same order, so that steps equal the sequence call bitwise.
#pragma once

#include "forward.h"

namespace fastrnn::FASTRNN_ISA {

template <class C, class N>
class StreamLayers {
 public:
  using S = typename N::Storage;
  using T = typename N::Value;

  struct Layer {
    Problem problem;
    ForwardWeights<C, N> weights;
    ForwardChain<C, N> chain;
    S* y;  // [B,O], the next layer's input
  };

  // Lays everything out behind the object itself, which starts the caller's memory.
  static StreamLayers* lay_out(const Problem& p, int layers, void* memory, size_t& bytes) {
    Arena arena(memory);
    auto* self = arena.take<StreamLayers>(1);
    auto* layer = arena.take<Layer>(layers);
    StreamLayers unplaced;
    Layer unplaced_layer;
    for (int i = 0; i < layers; ++i) {
      Layer& l = layer ? layer[i] : unplaced_layer;
      l.problem = p;
      if (i > 0) l.problem.I = p.P ? p.P : p.H;
      l.weights.lay_out(l.problem, arena);
      l.chain.lay_out(l.problem, 0, 0, p.B, 1, 1, false, l.weights, arena);
      l.y = arena.take<S>(p.B * (p.P ? p.P : p.H));
    }
    bytes = arena.bytes();
    StreamLayers& to = self ? *self : unplaced;
    to.count_ = layers, to.layer_ = layer, to.steps_ = 0;
    return self;
  }

  void load(const Weights* weights) {
    for (int i = 0; i < count_; ++i)
      for (int64_t p = 0; p < layer_[i].weights.panel_count(); ++p)
        layer_[i].weights.pack_panel(p, weights[i]);
  }

  void step(const S* x, int64_t x_row, S* y, int64_t y_row) {
    for (int i = 0; i < count_; ++i) {
      const Problem& p = layer_[i].problem;
      const int64_t O = p.P ? p.P : p.H;
      const bool last = i + 1 == count_;
      S* to = last ? y : layer_[i].y;
      layer_[i].chain.step_alone(x, x_row, to, last ? y_row : O, steps_);
      x = to, x_row = O;
    }
    ++steps_;
  }

  // h [L,B,O], c [L,B,H]; null: zeros.
  void set_state(const S* h, const T* c) {
    for (int i = 0; i < count_; ++i) {
      const Problem& p = layer_[i].problem;
      const int64_t at = i * p.B;
      layer_[i].chain.set_state(h ? h + at * (p.P ? p.P : p.H) : nullptr,
                                c ? c + at * p.H : nullptr);
    }
  }

  void get_state(S* h, T* c) const {
    for (int i = 0; i < count_; ++i) {
      const Problem& p = layer_[i].problem;
      const int64_t at = i * p.B;
      layer_[i].chain.get_state(h + at * (p.P ? p.P : p.H), c ? c + at * p.H : nullptr, steps_);
    }
  }

 private:
  int count_;
  int64_t steps_;
  Layer* layer_;
};

template <class C, class N>
struct StreamFunctions {
  using S = typename N::Storage;
  using T = typename N::Value;
  using Layers = StreamLayers<C, N>;
  static void* create(const Problem& p, int layers, void* memory, size_t& bytes) {
    return Layers::lay_out(p, layers, memory, bytes);
  }
  static void load(void* s, const Weights* weights) { static_cast<Layers*>(s)->load(weights); }
  static void step(void* s, const void* x, int64_t x_row, void* y, int64_t y_row) {
    static_cast<Layers*>(s)->step(static_cast<const S*>(x), x_row, static_cast<S*>(y), y_row);
  }
  static void set_state(void* s, const void* h, const void* c) {
    static_cast<Layers*>(s)->set_state(static_cast<const S*>(h), static_cast<const T*>(c));
  }
  static void get_state(const void* s, void* h, void* c) {
    static_cast<const Layers*>(s)->get_state(static_cast<S*>(h), static_cast<T*>(c));
  }
};

}  // namespace fastrnn::FASTRNN_ISA
