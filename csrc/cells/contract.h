// What a cell is made of. See docs/add_a_cell.md for the contract that a cell header fulfils.
#pragma once

#include "../math.h"

namespace fastrnn::FASTRNN_ISA {

struct Options {
  bool relu = false;  // Elman: relu instead of tanh
};

// A step of one unit, or of a vector of units, in the two parts that a cell gives. The CPU does the
// first part of several rows and then the second one: an activation of what another one made would
// else leave a processor waiting for both, row by row.
template <class C, class V>
FASTRNN_HD void cell_forward(const typename C::template In<V>& in, const Options& options,
                             Arr<V, C::kState>& next, Arr<V, C::kSaved>& saved) {
  const auto save = [&](int i, V value) { saved[i] = value; };
  Arr<V, C::kHeld> held;
  C::gates(in, options, next, held, save);
  C::output(in.prev, held, next, save);
}

}  // namespace fastrnn::FASTRNN_ISA
