// exp-family functions for every value type a cell is written in: scalars (host, device) and, on
// the CPU, Vec<T> of the ISA being compiled (simd/vec.h).
//
// sigmoid and tanh are within 3 ULP in float and double (tests/cpp/test_math.cpp holds the bounds),
// keep relative accuracy near 0, and pass NaN on. Of vectors, sigmoid may be
// 0 where it is below the smallest normal number.
#pragma once

#include <cmath>

#ifdef __CUDACC__
#define FASTRNN_HD __host__ __device__ inline
#else
#define FASTRNN_HD inline __attribute__((always_inline))
#endif

namespace fastrnn::FASTRNN_ISA {

template <class V, int N>
struct Arr {
  V values[N > 0 ? N : 1];
  FASTRNN_HD V& operator[](int i) { return values[i]; }
  FASTRNN_HD const V& operator[](int i) const { return values[i]; }
};

FASTRNN_HD float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
FASTRNN_HD double fma(double a, double b, double c) { return ::fma(a, b, c); }
FASTRNN_HD float fnma(float a, float b, float c) { return ::fmaf(-a, b, c); }
FASTRNN_HD double fnma(double a, double b, double c) { return ::fma(-a, b, c); }
FASTRNN_HD float tanh(float x) { return ::tanhf(x); }
FASTRNN_HD double tanh(double x) { return ::tanh(x); }
FASTRNN_HD float sigmoid(float x) { return 1.0f / (1.0f + ::expf(-x)); }
FASTRNN_HD double sigmoid(double x) { return 1.0 / (1.0 + ::exp(-x)); }

// sigmoid of the first S of N values, tanh of the others. Vectors have a way of their own, which is
// faster than one after the other.
template <int S, class V, int N>
FASTRNN_HD void activate(Arr<V, N>& x) {
  for (int i = 0; i < N; ++i) x[i] = i < S ? sigmoid(x[i]) : tanh(x[i]);
}

// The comparisons are written so that NaN takes the branch that keeps it.
FASTRNN_HD float relu(float x) { return x <= 0 ? 0 : x; }
FASTRNN_HD double relu(double x) { return x <= 0 ? 0 : x; }
FASTRNN_HD float relu_backward(float y, float dy) { return y <= 0 ? 0 : dy; }
FASTRNN_HD double relu_backward(double y, double dy) { return y <= 0 ? 0 : dy; }

}  // namespace fastrnn::FASTRNN_ISA
