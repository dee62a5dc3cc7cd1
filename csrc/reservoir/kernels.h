// What kernels.cpp, compiled once per ISA, gives to dispatch.cpp.
#pragma once

#include <fastrnn/reservoir.h>

namespace fastrnn::reservoir {

struct RunKernels {
  size_t (*workspace)(const Problem&);
  bool (*forward)(const Problem&, const ForwardBuffers&);  // false: interrupted
  bool (*backward)(const Problem&, const BackwardBuffers&);
  size_t (*forecast_workspace)(const Forecast&);
  bool (*forecast)(const Forecast&, const ForecastBuffers&);
  size_t (*polynomial_workspace)(const Polynomial&);
  bool (*polynomial)(const Polynomial&, const PolynomialBuffers&);
};

struct Kernels {
  RunKernels run[2];  // float32, float64
  size_t (*gram_workspace)(const Gram&);
  bool (*gram)(const Gram&, const GramBuffers&);
};

}  // namespace fastrnn::reservoir

#ifdef FASTRNN_ISA
namespace fastrnn::FASTRNN_ISA {
const reservoir::Kernels& reservoir_kernels();
}
#endif
