// bfloat16 and float16 in scalar code, as numbers of the engine's tests.
#pragma once

#include <algorithm>

#include "engine.h"

namespace test {

// M bits behind the point, E of the exponent; rounds to nearest, ties to even.
template <int M, int E>
struct Half {
  uint16_t bits = 0;

  Half() = default;
  explicit Half(double v) {
    const unsigned sign = std::signbit(v) ? 0x8000u : 0;
    int e = 0;
    std::frexp(v, &e);
    e = std::max(e, 2 - kBias);  // subnormal numbers share the smallest exponent
    const double steps = std::nearbyint(std::ldexp(std::fabs(v), M + 1 - e));
    // A carry out of `steps` lands in the exponent, which is where it belongs.
    const double code = v == 0 ? 0 : steps + std::ldexp(e - 2 + kBias, M);
    const double infinite = std::ldexp((1 << E) - 1, M);
    bits = static_cast<uint16_t>(sign | unsigned(std::fmin(code, infinite)));
  }
  explicit operator double() const {
    const int e = bits >> M & ((1 << E) - 1), m = bits & ((1 << M) - 1);
    const double size = e == (1 << E) - 1 ? (m ? NAN : INFINITY)
                        : e               ? std::ldexp((1 << M) + m, e - kBias - M)
                                          : std::ldexp(m, 1 - kBias - M);
    return bits >> 15 ? -size : size;
  }

 private:
  static constexpr int kBias = (1 << (E - 1)) - 1;
};
using Bfloat16 = Half<7, 8>;
using Float16 = Half<10, 5>;

template <>
constexpr Dtype kDtype<Bfloat16> = Dtype::kBfloat16;
template <>
constexpr Dtype kDtype<Float16> = Dtype::kFloat16;

template <int M, int E>
struct Pattern<Half<M, E>> {
  static constexpr uint16_t bits = 0xffe5u;
};
template <int M, int E>
struct ValueOf<Half<M, E>> {
  using Type = float;
};

}  // namespace test

template <int M, int E>
struct std::numeric_limits<test::Half<M, E>> {
  static constexpr double epsilon() { return 1.0 / (1 << M); }
};
