// 16-byte registers that every compiler target has; on x86-64 this is SSE2, without fused
// multiply-add.
#pragma once

namespace fastrnn::FASTRNN_ISA {
inline constexpr int kVectorBytes = 16;
inline constexpr int kRegisters = 16;
}  // namespace fastrnn::FASTRNN_ISA

#include "vec_generic.h"

namespace fastrnn::FASTRNN_ISA {

template <class N>
FASTRNN_HD N native_fma(N a, N b, N c) {
  return a * b + c;
}
template <class N>
FASTRNN_HD N native_fnma(N a, N b, N c) {
  return c - a * b;
}
template <class N>
FASTRNN_HD N native_min(N a, N b) {
  return generic_min(a, b);
}
template <class N>
FASTRNN_HD N native_max(N a, N b) {
  return generic_max(a, b);
}
template <class N>
FASTRNN_HD N native_power_of_two(N n) {
  return generic_power_of_two(n);
}
template <class N>
FASTRNN_HD N native_scale(N p, N n) {
  return generic_scale(p, n);
}
template <class T>
FASTRNN_HD Native<T> native_load(const T* p, int n) {
  return generic_load(p, n);
}
template <class T>
FASTRNN_HD void native_store(T* p, Native<T> v, int n) {
  generic_store(p, v, n);
}

}  // namespace fastrnn::FASTRNN_ISA
