// The only C++ list of cells: X(type, enumerator of fastrnn::Cell, public name).
#pragma once

#include "elman.h"
#include "gru.h"
#include "lstm.h"

#define FASTRNN_CELLS(X)          \
  X(Elman, Cell::kElman, "elman") \
  X(Lstm, Cell::kLstm, "lstm")    \
  X(Gru, Cell::kGru, "gru")
