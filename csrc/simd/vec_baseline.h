// 16-byte registers that every compiler target has; on x86-64 this is SSE2, without fused
// multiply-add.
#pragma once

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

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

#if defined(__SSE2__)
typedef int16_t Shorts __attribute__((vector_size(kVectorBytes)));
FASTRNN_HD Native<int32_t> native_dot_pairs(Shorts a, Shorts b) {
  return (Native<int32_t>)_mm_madd_epi16((__m128i)a, (__m128i)b);
}
#endif

}  // namespace fastrnn::FASTRNN_ISA
