// The inputs of a call as the engine reads them, and how they are found in torch's tensors.
#pragma once

#include <fastrnn/fastrnn.h>
#include <pybind11/pybind11.h>

#include <optional>
#include <vector>

using Pointer = uintptr_t;

inline void* at(Pointer p) { return reinterpret_cast<void*>(p); }

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

// The same of tensors, if there is nothing special about any of them: all have the type, numbers
// and, but for x, whose shape must have been checked, the shape that they should have, and their
// values are on the CPU and in order. Else none: the caller finds out what is wrong, or makes a
// copy. `step`: x is (B, I) and states are (B, O) or (B, H).
std::optional<Inputs> read_inputs(const fastrnn::Problem& problem, pybind11::handle x,
                                  pybind11::handle h0, pybind11::handle c0,
                                  const pybind11::sequence& weights, bool batch_first, bool step);

// Of the content of all weights.
fastrnn::Fingerprint fingerprint(const fastrnn::Problem& problem, const Inputs& inputs);
