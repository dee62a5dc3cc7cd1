// What the engine is instantiated for: the numbers of the caller, of the maths, and of the
// products.
#pragma once

#include <type_traits>

#include "../simd/factors.h"

namespace fastrnn::FASTRNN_ISA {

// Storage: what x, y, states, weights and their gradients are. Value: the numbers of the maths, of
// the carried state and of the reserve.
// Factors: of all products but those with W_hh. Recurrent: of these, with the same rows and sums.
template <class S, class V, class F, class R = F>
struct Format {
  using Storage = S;
  using Value = V;
  using Factors = F;
  using Recurrent = R;
  using Left = typename F::Left;
  using Sum = typename F::Sum;
  static constexpr int kWidth = Vec<V>::kWidth;
  static constexpr bool kQuantized = std::is_same_v<F, Int8Factors>;
  using Weight = std::conditional_t<kQuantized, int8_t, S>;
  static constexpr bool kReduced = !std::is_same_v<S, V>;
  // Rows of the caller can be factors as they are.
  static constexpr bool kDirect = std::is_same_v<S, Left>;
};

using Float32 = Format<float, float, PlainFactors<float>>;
using Float64 = Format<double, double, PlainFactors<double>>;
using Bfloat16Format = Format<Bfloat16, float, Bfloat16Factors>;
#ifdef FASTRNN_HAS_NARROW
using NarrowBfloat16 = Format<Bfloat16, float, Bfloat16Factors, NarrowBfloat16Factors>;
using NarrowBfloat16Stream = Format<Bfloat16, float, NarrowBfloat16Factors>;
#endif
using Float16Format = Format<Float16, float, PlainFactors<float>>;
using Int8Format = Format<float, float, Int8Factors>;

}  // namespace fastrnn::FASTRNN_ISA
