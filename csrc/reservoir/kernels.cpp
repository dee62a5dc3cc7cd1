// All reservoir kernels of one instruction set: compiled once per ISA, with its flags.
#include "kernels.h"

#include "backward.h"
#include "forecast.h"
#include "forward.h"
#include "gram.h"
#include "polynomial.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
size_t run_workspace(const ReservoirProblem& p) {
  const size_t forward = forward_slot_bytes<T>(p), backward = backward_slot_bytes<T>(p);
  return (forward > backward ? forward : backward) * size_t(p.threads);
}

template <class T>
constexpr reservoir::RunKernels run_kernels() {
  return {run_workspace<T>,      reservoir_forward<T>,  reservoir_backward<T>,
          forecast_workspace<T>, reservoir_forecast<T>, polynomial_workspace<T>,
          polynomial_forecast<T>};
}

const reservoir::Kernels& reservoir_kernels() {
  static constexpr reservoir::Kernels all = {
      {run_kernels<float>(), run_kernels<double>()}, gram_workspace, gram_accumulate};
  return all;
}

}  // namespace fastrnn::FASTRNN_ISA
