// All kernels of one instruction set: compiled once per ISA, with its flags, as FASTRNN_ISA.
#include "kernels.h"

#include "../cells/list.h"
#include "backward.h"
#include "forward.h"
#include "measure.h"

namespace fastrnn::FASTRNN_ISA {

template <class C, class T>
constexpr CellKernels cell_kernels() {
  return {sequence_forward_sizes<C, T>, sequence_backward_sizes<C, T>, sequence_forward<C, T>,
          sequence_backward<C, T>};
}

const Kernels& kernels() {
#define FASTRNN_ENTRY(type, id, name) {cell_kernels<type, float>(), cell_kernels<type, double>()},
#define FASTRNN_INFO(type, id, name) {name, type::kWx, type::kState, type::kSaved},
  static constexpr Kernels all = {{FASTRNN_CELLS(FASTRNN_ENTRY)},
                                  {FASTRNN_CELLS(FASTRNN_INFO)},
                                  hash_buffers,
                                  measure_fma_peak,
                                  measure_read_bandwidth};
#undef FASTRNN_ENTRY
#undef FASTRNN_INFO
  return all;
}

}  // namespace fastrnn::FASTRNN_ISA
