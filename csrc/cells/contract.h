// What a cell is made of. See docs/add_a_cell.md for the contract that a cell header fulfils.
#pragma once

#include "../math.h"

namespace fastrnn::FASTRNN_ISA {

template <class V, int N>
struct Arr {
  V values[N > 0 ? N : 1];
  FASTRNN_HD V& operator[](int i) { return values[i]; }
  FASTRNN_HD const V& operator[](int i) const { return values[i]; }
};

struct Options {
  bool relu = false;  // Elman: relu instead of tanh
};

}  // namespace fastrnn::FASTRNN_ISA
