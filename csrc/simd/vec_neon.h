// aarch64 Advanced SIMD: 32 registers of 16 bytes.
#pragma once

#include <arm_neon.h>

namespace fastrnn::FASTRNN_ISA {
inline constexpr int kVectorBytes = 16;
inline constexpr int kRegisters = 32;
}  // namespace fastrnn::FASTRNN_ISA

#include "vec_generic.h"

namespace fastrnn::FASTRNN_ISA {

FASTRNN_HD Native<float> native_fma(Native<float> a, Native<float> b, Native<float> c) {
  return (Native<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
FASTRNN_HD Native<double> native_fma(Native<double> a, Native<double> b, Native<double> c) {
  return (Native<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}
FASTRNN_HD Native<float> native_fnma(Native<float> a, Native<float> b, Native<float> c) {
  return (Native<float>)vfmsq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
FASTRNN_HD Native<double> native_fnma(Native<double> a, Native<double> b, Native<double> c) {
  return (Native<double>)vfmsq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
}

}  // namespace fastrnn::FASTRNN_ISA
