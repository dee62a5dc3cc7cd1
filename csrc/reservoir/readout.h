// The readout of states in a closed loop.
#pragma once

#include <cstdint>

namespace fastrnn::FASTRNN_ISA {

constexpr int64_t kReadoutLanes = 8;

// The sum of w[i] x[i] in float64; in eight chains, whatever the ISA. `square`: of the odd x,
// squared.
template <class T>
double readout_sum(const double* w, const T* x, int64_t n, bool square) {
  double sums[kReadoutLanes] = {};
  const auto value = [&](int64_t i, int64_t lane) {
    const double v = double(x[i + lane]);
    return square && lane % 2 ? v * v : v;
  };
  int64_t i = 0;
  for (; i + kReadoutLanes <= n; i += kReadoutLanes)
    for (int64_t l = 0; l < kReadoutLanes; ++l) sums[l] += w[i + l] * value(i, l);
  for (int64_t l = 0; i + l < n; ++l) sums[l] += w[i + l] * value(i, l);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

}  // namespace fastrnn::FASTRNN_ISA
