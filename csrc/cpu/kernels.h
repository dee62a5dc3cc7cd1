// What kernels.cpp, compiled once per ISA, gives to dispatch.cpp.
#pragma once

#include <fastrnn/fastrnn.h>

namespace fastrnn {

namespace reservoir {
struct Kernels;  // reservoir/kernels.h
}

// A stack of layers in `memory`, or with null only the bytes that it takes.
struct StreamKernels {
  void* (*create)(const Problem&, int layers, void* memory, size_t& bytes);
  void (*load)(void* stream, const Weights* weights);
  void (*step)(void* stream, const void* x, int64_t x_row, void* y, int64_t y_row);
  void (*set_state)(void* stream, const void* h, const void* c);
  void (*get_state)(const void* stream, void* h, void* c);
};

struct CellKernels {  // null: there is none for this dtype
  void (*forward_sizes)(const Problem&, Sizes&);
  void (*backward_sizes)(const Problem&, Sizes&);
  bool (*forward)(const Problem&, const ForwardBuffers&);  // false: interrupted
  bool (*backward)(const Problem&, const BackwardBuffers&);
  StreamKernels stream;
  size_t (*second_order_workspace)(const Problem&, int64_t rows);
  bool (*second_order)(const Problem&, const SecondOrderBuffers&);
};

// For tests of the vector functions: y[i] = f(x[i]).
enum class Function { kSigmoid, kTanh };

constexpr int kCells = 3, kDtypes = 5;

struct Kernels {
  CellKernels cells[kCells][kDtypes];
  // Of bfloat16, see keeps_narrow() in dispatch.cpp; without functions: there are none.
  CellKernels few_rows[kCells];
  CellInfo info[kCells];
  Fingerprint (*fingerprint)(const void* const* pointers, const size_t* bytes, size_t count);
  void (*map)(Function, Dtype, const void* x, void* y, int64_t n);
  double (*fma_peak)(Dtype, double seconds);
  double (*read_bandwidth)(void* buffer, size_t bytes, double seconds);
  const reservoir::Kernels* reservoir;
};

namespace baseline {
const Kernels& kernels();
}
namespace neon {
const Kernels& kernels();
}
namespace avx2 {
const Kernels& kernels();
}
namespace avx512 {
const Kernels& kernels();
}
namespace avx512_bf16 {
const Kernels& kernels();
}
namespace amx {
const Kernels& kernels();
}

}  // namespace fastrnn
