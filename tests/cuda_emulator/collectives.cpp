// What the lanes of a warp compute together, by the register layouts of the PTX manual (sections
// "Matrix Fragments for mma.m16n8k16", "... mma.m16n8k8" and "ldmatrix").
#include <cmath>
#include <cstdint>

#include "emulator.h"

namespace emulator {
namespace {

float as_float(unsigned bits) {
  union {
    unsigned u;
    float f;
  } v = {bits};
  return v.f;
}

float widen_bfloat16(unsigned bits) { return as_float(bits << 16); }
float widen_float16(unsigned bits) {
  const int e = static_cast<int>(bits >> 10 & 31), m = static_cast<int>(bits & 1023);
  const double size = e == 31 ? (m ? NAN : INFINITY)
                      : e     ? std::ldexp(1024 + m, e - 25)
                              : std::ldexp(m, -24);
  return static_cast<float>(bits >> 15 & 1 ? -size : size);
}

template <class T>
T& of(Lanes lanes, int lane) {
  return *static_cast<T*>(lanes[lane]);
}

unsigned half_of(unsigned word, int i) { return word >> 16 * i & 0xffff; }

template <int K>
void multiply(Lanes lanes, const float (&a)[16][K], const float (&b)[8][K]) {
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float& sum = of<Product>(lanes, lane).sums[i];
      for (int k = 0; k < K; ++k) sum = fmaf(a[row][k], b[column][k], sum);
    }
}

template <float (*kWiden)(unsigned)>
void multiply_halves(Lanes lanes) {
  float a[16][16], b[8][16];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& p = of<Product>(lanes, lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i)
      for (int h = 0; h < 2; ++h)
        a[g + i % 2 * 8][t * 2 + h + i / 2 * 8] = kWiden(half_of(p.a[i], h));
    for (int i = 0; i < 2; ++i)
      for (int h = 0; h < 2; ++h) b[g][t * 2 + h + i * 8] = kWiden(half_of(p.b[i], h));
  }
  multiply(lanes, a, b);
}

// One lane's view of matrix i: two neighbours of row lane / 4, or of column lane / 4.
template <bool kTransposed>
void load(Lanes lanes) {
  const auto element = [&](int matrix, int row, int column) {
    return half_of(of<Matrices>(lanes, matrix * 8 + row).row[column / 2], column % 2);
  };
  for (int lane = 0; lane < 32; ++lane)
    for (int i = 0; i < 4; ++i) {
      const int g = lane / 4, t = lane % 4 * 2;
      const unsigned low = kTransposed ? element(i, t, g) : element(i, g, t);
      const unsigned high = kTransposed ? element(i, t + 1, g) : element(i, g, t + 1);
      of<Matrices>(lanes, lane).registers[i] = low | high << 16;
    }
}

}  // namespace

void shuffle_xor(Lanes lanes) {
  for (int lane = 0; lane < 32; ++lane) {
    auto& p = of<Shuffle>(lanes, lane);
    p.result = of<Shuffle>(lanes, lane ^ p.mask).value;
  }
}
void load_matrices(Lanes lanes) { load<false>(lanes); }
void load_matrices_transposed(Lanes lanes) { load<true>(lanes); }
void multiply_bfloat16(Lanes lanes) { multiply_halves<widen_bfloat16>(lanes); }
void multiply_float16(Lanes lanes) { multiply_halves<widen_float16>(lanes); }

// The tensor cores look at the upper 19 bits only.
void multiply_tf32(Lanes lanes) {
  constexpr unsigned kSeen = ~0x1fffu;
  float a[16][8], b[8][8];
  for (int lane = 0; lane < 32; ++lane) {
    const auto& p = of<Product>(lanes, lane);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < 4; ++i) a[g + i % 2 * 8][t + i / 2 * 4] = as_float(p.a[i] & kSeen);
    for (int i = 0; i < 2; ++i) b[g][t + i * 4] = as_float(p.b[i] & kSeen);
  }
  multiply(lanes, a, b);
}

}  // namespace emulator
