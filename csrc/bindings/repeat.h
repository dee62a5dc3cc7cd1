// A call like one before it, from tensors to tensors.
#pragma once

#include <pybind11/pybind11.h>

#include "inputs.h"

// Where rows lie: (B, T, .) or (T, B, .); of a step (B, .).
struct Layout {
  bool x_batch_first, y_batch_first, step;
};

// forward() without gradients of a batch without lengths, if weights have been packed and nothing
// is special about any tensor (see read_inputs): (y, h_n, c_n), as fastrnn._ops.forward returns
// them. Else None, and nothing has been computed. Checks, outputs and weights' content are dealt
// with here because the same through Python takes several times as long as a small step.
//
// `content` is the fingerprint of the weights that were packed, or None if they cannot have
// changed; `out` None, or where h_n and c_n go. Of a step h_n is not returned and goes to `h_n`.
pybind11::object repeat(const SizedProblem& sized, const Layout& layout, pybind11::handle x,
                        pybind11::handle h0, pybind11::handle c0, const pybind11::sequence& weights,
                        pybind11::handle content, pybind11::handle out, Pointer packed,
                        Pointer workspace, Pointer h_n);
