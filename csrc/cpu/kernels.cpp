// All kernels of one instruction set: compiled once per ISA, with its flags, as FASTRNN_ISA.
#include "kernels.h"

#include "../cells/list.h"
#include "../reservoir/kernels.h"
#include "backward.h"
#include "forward.h"
#include "measure.h"
#include "second_order.h"
#include "stream.h"

namespace fastrnn::FASTRNN_ISA {

template <class C, class N, class InStreams = N>
constexpr CellKernels cell_kernels() {
  using S = StreamFunctions<C, InStreams>;
  CellKernels k = {sequence_forward_sizes<C, N>,
                   nullptr,
                   sequence_forward<C, N>,
                   nullptr,
                   {S::create, S::load, S::step, S::set_state, S::get_state},
                   nullptr,
                   nullptr};
  if constexpr (!N::kQuantized) {
    k.backward_sizes = sequence_backward_sizes<C, N>;
    k.backward = sequence_backward<C, N>;
  }
  if constexpr (!N::kQuantized && !N::kReduced) {
    k.second_order_workspace = second_order_workspace<C, N>;
    k.second_order = second_order<C, N>;
  }
  return k;
}

template <class T>
void map_values(Function f, const T* x, T* y, int64_t n) {
  using V = Vec<T>;
  for (int64_t i = 0; i < n; i += V::kWidth) {
    const int count = int(smaller(V::kWidth, n - i));
    const V v = V::load(x + i, count);
    (f == Function::kSigmoid ? sigmoid(v) : tanh(v)).store(y + i, count);
  }
}

void map(Function f, Dtype dtype, const void* x, void* y, int64_t n) {
  if (dtype == Dtype::kFloat32)
    map_values(f, static_cast<const float*>(x), static_cast<float*>(y), n);
  else
    map_values(f, static_cast<const double*>(x), static_cast<double*>(y), n);
}

const Kernels& kernels() {
#ifdef FASTRNN_EXTENDS
  // Only products of 16 and of 8 bits differ from those of the instruction set that it extends.
#define FASTRNN_ENTRY(type, id, name)                                              \
  to.cells[int(id)][int(Dtype::kBfloat16)] = cell_kernels<type, Bfloat16Format>(); \
  to.cells[int(id)][int(Dtype::kInt8)] = cell_kernels<type, Int8Format>();         \
  to.few_rows[int(id)] = {};
  static const Kernels all = [] {
    Kernels to = FASTRNN_EXTENDS::kernels();
    FASTRNN_CELLS(FASTRNN_ENTRY)
    to.fma_peak = measure_fma_peak;
    return to;
  }();
#undef FASTRNN_ENTRY
#else
  // In the order of enum Dtype.
#define FASTRNN_ENTRY(type, id, name)                                         \
  {cell_kernels<type, Float32>(), cell_kernels<type, Float64>(),              \
   cell_kernels<type, Bfloat16Format>(), cell_kernels<type, Float16Format>(), \
   cell_kernels<type, Int8Format>()},
#define FASTRNN_INFO(type, id, name)                                           \
  {name,           type::kWx, type::kState,     type::kSaved, type::kProjects, \
   type::kHasRelu, type::kD,  type::kStateSlot, type::kDwx,   type::kDrh},
#define FASTRNN_FEW_ROWS(type, id, name) cell_kernels<type, NarrowBfloat16, NarrowBfloat16Stream>(),
  static const Kernels all = {{FASTRNN_CELLS(FASTRNN_ENTRY)},
                              {FASTRNN_CELLS(FASTRNN_FEW_ROWS)},
                              {FASTRNN_CELLS(FASTRNN_INFO)},
                              hash_buffers,
                              map,
                              measure_fma_peak,
                              measure_read_bandwidth,
                              &reservoir_kernels()};
#undef FASTRNN_ENTRY
#undef FASTRNN_FEW_ROWS
#undef FASTRNN_INFO
#endif
  return all;
}

}  // namespace fastrnn::FASTRNN_ISA
