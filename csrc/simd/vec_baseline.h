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

}  // namespace fastrnn::FASTRNN_ISA
