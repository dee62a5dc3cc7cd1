// The readout of states in a closed loop, in float64.
#pragma once

#include "../simd/vec.h"

namespace fastrnn::FASTRNN_ISA {

// What the readout sees of n states: the odd ones squared with `square`.
template <class T>
void to_features(const T* x, int64_t n, bool square, double* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = double(x[i]);
  for (int64_t i = 1; square && i < n; i += 2) to[i] *= to[i];
}

// The sum of a[i] b[i], in four chains of vectors.
inline double dot(const double* a, const double* b, int64_t n) {
  using V = Vec<double>;
  constexpr int kChains = 4, W = V::kWidth;
  V sum[kChains] = {V(0), V(0), V(0), V(0)};
  int64_t i = 0;
  for (; i + kChains * W <= n; i += kChains * W)
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c)
      sum[c] = fma(V::load(a + i + c * W), V::load(b + i + c * W), sum[c]);
  for (int c = 0; i < n; i += W, ++c) {
    const int some = int(n - i < W ? n - i : W);
    sum[c] = fma(V::load(a + i, some), V::load(b + i, some), sum[c]);
  }
  alignas(64) double lanes[W];
  ((sum[0] + sum[1]) + (sum[2] + sum[3])).store(lanes);
  for (int half = W / 2; half; half /= 2)
    for (int l = 0; l < half; ++l) lanes[l] += lanes[l + half];
  return lanes[0];
}

}  // namespace fastrnn::FASTRNN_ISA
