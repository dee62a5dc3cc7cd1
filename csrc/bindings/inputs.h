// The inputs of a call as the engine reads them, and how they are found in torch's tensors.
#pragma once

#include <fastrnn/fastrnn.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

using Pointer = uintptr_t;

inline void* at(Pointer p) { return reinterpret_cast<void*>(p); }

// A problem with its sizes and the layout of its packed weights, which depend on the ISA in use
// when it was made.
struct SizedProblem {
  fastrnn::Problem problem;
  fastrnn::Sizes sizes;
  std::string isa;
};

// What x, states and outputs are made of: weights may be of 8 bits.
inline fastrnn::Dtype value_dtype(const fastrnn::Problem& p) {
  return p.dtype == fastrnn::Dtype::kInt8 ? fastrnn::Dtype::kFloat32 : p.dtype;
}

inline int64_t output_size(const fastrnn::Problem& p) { return p.P ? p.P : p.H; }

struct Inputs {
  const void* x = nullptr;
  fastrnn::Strides x_strides;
  const void* h0 = nullptr;
  const void* c0 = nullptr;
  fastrnn::Weights weights[2];  // of each direction
};

// How many addresses Python gives for one direction; of 8-bit weights three scales come last.
constexpr size_t kMatricesAndBiases = 5, kWithScales = 8;

// The weights of each direction, or of each layer of a stream.
std::vector<fastrnn::Weights> read_weights(const fastrnn::Problem& problem, size_t count,
                                           const std::vector<Pointer>& from);

Inputs make_inputs(const fastrnn::Problem& problem, Pointer x, int64_t x_step, int64_t x_row,
                   Pointer h0, Pointer c0, const std::vector<Pointer>& weights);

// The rows of a tensor, (T, B, width) or (B, T, width), or of a step (B, width). False, here and of
// a state, if there is anything special about it: see read_inputs().
struct Rows {
  void* data = nullptr;
  fastrnn::Strides strides;
};
bool read_rows(const fastrnn::Problem& problem, pybind11::handle from, int64_t width,
               bool batch_first, bool step, Rows& to);

// A state, (D, B, width) or of a step (B, width), or None.
bool read_state(const fastrnn::Problem& problem, pybind11::handle from, int64_t width, bool step,
                const void*& to);

// The inputs of a call, if there is nothing special about any of them: all have the type, numbers
// and, but for x of several lengths, whose shape must have been checked, the shape that they should
// have, and their values are on the CPU, in order and as they are, not negated. Else none: the
// caller finds out what is wrong, or makes a copy. `step`: x is (B, I), states are (B, O) or (B,
// H).
std::optional<Inputs> read_inputs(const fastrnn::Problem& problem, pybind11::handle x,
                                  pybind11::handle h0, pybind11::handle c0,
                                  const pybind11::sequence& weights, bool batch_first, bool step);

// Of the content of all weights. The GIL is released for as long as reading many takes.
pybind11::bytes fingerprint(const SizedProblem& sized, const Inputs& inputs);

template <class Buffers>
Buffers buffers_with(const Inputs& inputs) {
  Buffers b;
  b.x = inputs.x, b.x_strides = inputs.x_strides;
  b.h0 = inputs.h0, b.c0 = inputs.c0;
  std::copy(std::begin(inputs.weights), std::end(inputs.weights), b.weights);
  return b;
}
