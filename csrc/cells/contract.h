// What a cell is made of. See docs/add_a_cell.md for the contract that a cell header fulfils.
#pragma once

#include "../math.h"

namespace fastrnn::FASTRNN_ISA {

struct Options {
  bool relu = false;  // Elman: relu instead of tanh
};

}  // namespace fastrnn::FASTRNN_ISA
