// All kernels of one instruction set: compiled once per ISA, with its flags, as FASTRNN_ISA.
#include "kernels.h"

#include "../cells/list.h"
#include "backward.h"
#include "forward.h"
#include "measure.h"
#include "stream.h"

namespace fastrnn::FASTRNN_ISA {

template <class C, class T>
constexpr CellKernels cell_kernels() {
  using S = StreamFunctions<C, T>;
  return {sequence_forward_sizes<C, T>,
          sequence_backward_sizes<C, T>,
          sequence_forward<C, T>,
          sequence_backward<C, T>,
          {S::create, S::load, S::step, S::set_state, S::get_state}};
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
#define FASTRNN_ENTRY(type, id, name) {cell_kernels<type, float>(), cell_kernels<type, double>()},
#define FASTRNN_INFO(type, id, name) \
  {name, type::kWx, type::kState, type::kSaved, type::kProjects, type::kHasRelu},
  static constexpr Kernels all = {{FASTRNN_CELLS(FASTRNN_ENTRY)},
                                  {FASTRNN_CELLS(FASTRNN_INFO)},
                                  hash_buffers,
                                  map,
                                  measure_fma_peak,
                                  measure_read_bandwidth};
#undef FASTRNN_ENTRY
#undef FASTRNN_INFO
  return all;
}

}  // namespace fastrnn::FASTRNN_ISA
