// Whole calls, from tensors to tensors. Checks and outputs are dealt with here because the same
// through Python takes several times as long as a small step. What is not ordinary is refused: then
// nothing has been computed, and fastrnn._ops goes through everything by itself.
#pragma once

#include <pybind11/pybind11.h>

#include "inputs.h"

// Where rows lie: (B, T, .) or (T, B, .); of a step (B, .).
struct Layout {
  bool x_batch_first, y_batch_first, step;
};

// forward() without gradients, for a batch without lengths, if weights have been packed and nothing
// is special about any tensor (see read_inputs): (y, h_n, c_n), as fastrnn._ops.forward returns
// them. Else None.
//
// `content` is the fingerprint of the weights that were packed, or None if they cannot have
// changed; `out` None, or where h_n and c_n go. Of a step h_n is not returned and goes to `h_n`.
pybind11::object repeat(const SizedProblem& sized, const Layout& layout, pybind11::handle x,
                        pybind11::handle h0, pybind11::handle c0, const pybind11::sequence& weights,
                        pybind11::handle content, pybind11::handle out, Pointer packed,
                        Pointer workspace, Pointer h_n);

// forward() that keeps what backward() needs, for a batch without lengths in float32 or float64, if
// nothing is special about any tensor: (y, h_n, c_n, reserve), as fastrnn._ops.forward returns
// them. Else None. Of a step h_n is as above.
pybind11::object ordinary_forward(const SizedProblem& sized, const Layout& layout,
                                  pybind11::handle x, pybind11::handle h0, pybind11::handle c0,
                                  const pybind11::sequence& weights, Pointer packed,
                                  Pointer workspace, Pointer h_n);

// backward() for a batch without lengths, if nothing is special about any tensor: the gradients of
// x, h0, c0 and the weights, None for those not `wanted`. Else None.
pybind11::object ordinary_backward(const SizedProblem& sized, const Layout& layout,
                                   pybind11::handle x, pybind11::handle h0, pybind11::handle c0,
                                   const pybind11::sequence& weights,
                                   const pybind11::sequence& wanted, pybind11::handle dy,
                                   pybind11::handle dh_n, pybind11::handle dc_n, pybind11::handle y,
                                   pybind11::handle reserve, Pointer workspace);
