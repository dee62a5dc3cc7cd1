// Products of a transposed matrix with gradients, of one row at a time.
#pragma once

#include "product.h"

namespace fastrnn::FASTRNN_ISA {

template <class T>
FASTRNN_HD T sum_of(Vec<T> v) {
  alignas(64) T lanes[Vec<T>::kWidth];
  v.store(lanes);
  for (int half = Vec<T>::kWidth / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// out[k] += sum over all rows i of d[i] times element k of row i, of panels [blocks,count,16].
template <class T>
void add_transposed_panels(const T* weights, int64_t blocks, int64_t count, const T* d, T* out) {
  using V = Vec<T>;
  for (int64_t k = 0; k < count; ++k) {
    V sum(0);
    for (int64_t b = 0; b < blocks; ++b)
      for (int lane = 0; lane < kBlock; lane += V::kWidth)
        sum = fma(V::load(weights + (b * count + k) * kBlock + lane),
                  V::load(d + b * kBlock + lane), sum);
    out[k] += sum_of(sum);
  }
}

// `out` has extended(N) elements; what goes past N is folded back.
template <class T, class Index>
void add_transposed_strips(const MatrixView<T>& m, const T* d, T* out) {
  using V = Vec<T>;
  const Index* columns = static_cast<const Index*>(m.columns);
  for (int64_t i = 0; i < kBlock; ++i) out[m.N + i] = 0;
  for (int64_t b = 0; b < blocks_of(m.N); ++b)
    for (int64_t k = 0; k < m.K; ++k) {
      const T* w = m.weights + (b * m.K + k) * kBlock;
      T* to = out + columns[b * m.K + k];
      for (int lane = 0; lane < kBlock; lane += V::kWidth)
        fma(V::load(w + lane), V::load(d + b * kBlock + lane), V::load(to + lane)).store(to + lane);
    }
  for (int64_t i = kBlock - 1; i >= 0; --i) out[i] += out[m.N + i];
}

template <class T, class Index>
void add_transposed_rows(const MatrixView<T>& m, const T* d, T* out) {
  const Index* columns = static_cast<const Index*>(m.columns);
  for (int64_t i = 0; i < m.N; ++i)
    for (int64_t e = m.rows[i]; e < m.rows[i + 1]; ++e)
      out[columns[e]] = multiply_add(m.weights[e], d[i], out[columns[e]]);
}

template <class T>
void add_transposed_windows(const MatrixView<T>& m, const T* d, T* out) {
  const uint8_t* places = static_cast<const uint8_t*>(m.columns);
  const int64_t windows = windows_of(m.N);
  for (int64_t b = 0; b < blocks_of(m.N); ++b)
    for (int64_t w = 0; w < windows; ++w)
      for (int64_t e = m.rows[b * windows + w]; e < m.rows[b * windows + w + 1]; ++e)
        for (int64_t i = 0; i < kBlock; ++i) {
          T& to = out[w * kWindow + places[e * kBlock + i]];
          to = multiply_add(m.weights[e * kBlock + i], d[b * kBlock + i], to);
        }
}

// out += m^T d; d is zero after N, out has extended(N) elements.
template <class T>
void add_transposed(const MatrixView<T>& m, const T* d, T* out) {
  if (m.layout == Layout::kStrips)
    m.wide ? add_transposed_strips<T, int32_t>(m, d, out)
           : add_transposed_strips<T, uint16_t>(m, d, out);
  else if (m.layout == Layout::kRows)
    m.wide ? add_transposed_rows<T, int32_t>(m, d, out)
           : add_transposed_rows<T, uint16_t>(m, d, out);
  else if (m.layout == Layout::kPanels)
    add_transposed_panels(m.weights, blocks_of(m.N), m.N, d, out);
  else if (m.layout == Layout::kWindows)
    add_transposed_windows(m, d, out);
}

}  // namespace fastrnn::FASTRNN_ISA
