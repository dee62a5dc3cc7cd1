// What numbers are stored as, what the maths and the sums are, and how a warp multiplies them.
#pragma once

#include "math.h"
#include "primitives.cuh"

namespace fastrnn::cuda {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

FASTRNN_DEVICE float widen(float v) { return v; }
FASTRNN_DEVICE double widen(double v) { return v; }
FASTRNN_DEVICE float widen(Bfloat16 v) { return bits_float(static_cast<unsigned>(v.bits) << 16); }
FASTRNN_DEVICE float widen(Float16 v) { return widen_float16(v.bits); }

template <class S>
struct Narrow {
  static FASTRNN_DEVICE S of(S v) { return v; }
};
template <>
struct Narrow<Bfloat16> {
  static FASTRNN_DEVICE Bfloat16 of(float v) { return {round_to_bfloat16(v)}; }
};
template <>
struct Narrow<Float16> {
  static FASTRNN_DEVICE Float16 of(float v) { return {round_to_float16(v)}; }
};
template <class S, class V>
FASTRNN_DEVICE S narrow(V v) {
  return Narrow<S>::of(v);
}

FASTRNN_DEVICE void multiply_halves(Bfloat16, float (&sums)[4], const unsigned (&a)[4],
                                    const unsigned (&b)[2]) {
  multiply_bfloat16(sums, a, b);
}
FASTRNN_DEVICE void multiply_halves(Float16, float (&sums)[4], const unsigned (&a)[4],
                                    const unsigned (&b)[2]) {
  multiply_float16(sums, a, b);
}

// A format multiplies kTiles x 16 rows of `a` by 16 rows of `b` over its kStep successive k. All
// spread the sums over a warp as mma.sync does: lane l has in sums[i][n][j] row i * 16 + l / 4 +
// j / 2 * 8 and column n * 8 + l % 4 * 2 + j % 2. Element (row, k) of `a` is at row * lda + k, or
// with kTransposed at k * lda + row; element (column, k) of `b` at column * ldb + k.

// Formats of the tensor cores make a product of fragments: Rows of 16 rows of `a`, Columns of 16 of
// `b`. Rows need 4 registers and may stay there: hold() makes them of element(half, k), number k of
// row lane / 4 + half * 8, as rows() does of shared memory.

template <class S>
struct Halves {
  using Storage = S;
  using Value = float;
  static constexpr int kStep = 16;
  static constexpr bool kHolds = true;

  struct Rows {
    unsigned at[4];
  };
  struct Columns {
    unsigned at[4];
  };

  static FASTRNN_DEVICE Columns columns(const S* b, int ldb) {
    const int lane = thread_index() % 32, matrix = lane / 8, r = lane % 8;
    Columns c;
    load_matrices<false>(c.at, b + (matrix / 2 * 8 + r) * ldb + matrix % 2 * 8);
    return c;
  }
  template <bool kTransposed>
  static FASTRNN_DEVICE Rows rows(const S* a, int lda) {
    const int lane = thread_index() % 32, matrix = lane / 8, r = lane % 8;
    Rows rows;
    load_matrices<kTransposed>(rows.at, kTransposed
                                            ? a + (matrix / 2 * 8 + r) * lda + matrix % 2 * 8
                                            : a + (matrix % 2 * 8 + r) * lda + matrix / 2 * 8);
    return rows;
  }
  template <class Element>
  static FASTRNN_DEVICE Rows hold(const Element& element) {
    const int t = thread_index() % 4 * 2;
    Rows rows;
    for (int j = 0; j < 4; ++j) {
      const int k = t + j / 2 * 8;
      rows.at[j] = element(j % 2, k).bits | static_cast<unsigned>(element(j % 2, k + 1).bits) << 16;
    }
    return rows;
  }
  static FASTRNN_DEVICE void add(float (&sums)[2][4], Rows rows, const Columns& c) {
    if (FASTRNN_PLANTED(kLaneMap)) {
      const unsigned swapped = rows.at[1];
      rows.at[1] = rows.at[2], rows.at[2] = swapped;
    }
    const unsigned first[2] = {c.at[0], c.at[1]}, second[2] = {c.at[2], c.at[3]};
    multiply_halves(S(), sums[0], rows.at, first);
    multiply_halves(S(), sums[1], rows.at, second);
  }

  template <bool kTransposed, int kTiles>
  static FASTRNN_DEVICE void multiply(float (&sums)[kTiles][2][4], const S* a, int lda, const S* b,
                                      int ldb) {
    const Columns c = columns(b, ldb);
    for (int i = 0; i < kTiles; ++i)
      add(sums[i], rows<kTransposed>(kTransposed ? a + i * 16 : a + i * 16 * lda, lda), c);
  }
};

struct Tf32 {
  using Storage = float;
  using Value = float;
  static constexpr int kStep = 8;
  static constexpr bool kHolds = true;

  struct Rows {
    unsigned at[4];
  };
  struct Columns {
    unsigned at[2][2];
  };

  static FASTRNN_DEVICE Columns columns(const float* b, int ldb) {
    const int g = thread_index() % 32 / 4, t = thread_index() % 4;
    Columns c;
    for (int n = 0; n < 2; ++n)
      for (int j = 0; j < 2; ++j) c.at[n][j] = round_to_tf32(b[(n * 8 + g) * ldb + t + j * 4]);
    return c;
  }
  template <class Element>
  static FASTRNN_DEVICE Rows hold(const Element& element) {
    const int t = thread_index() % 4;
    Rows rows;
    for (int j = 0; j < 4; ++j) rows.at[j] = round_to_tf32(element(j % 2, t + j / 2 * 4));
    return rows;
  }
  template <bool kTransposed>
  static FASTRNN_DEVICE Rows rows(const float* a, int lda) {
    const int g = thread_index() % 32 / 4;
    return hold([=](int half, int k) {
      const int row = g + half * 8;
      return kTransposed ? a[k * lda + row] : a[row * lda + k];
    });
  }
  static FASTRNN_DEVICE void add(float (&sums)[2][4], const Rows& rows, const Columns& c) {
    for (int n = 0; n < 2; ++n) multiply_tf32(sums[n], rows.at, c.at[n]);
  }

  template <bool kTransposed, int kTiles>
  static FASTRNN_DEVICE void multiply(float (&sums)[kTiles][2][4], const float* a, int lda,
                                      const float* b, int ldb) {
    const Columns c = columns(b, ldb);
    for (int i = 0; i < kTiles; ++i)
      add(sums[i], rows<kTransposed>(kTransposed ? a + i * 16 : a + i * 16 * lda, lda), c);
  }
};

// Plain multiply-adds, 16 bytes of a row at a time.
template <class V>
struct Plain {
  using Storage = V;
  using Value = V;
  static constexpr int kStep = 32 / static_cast<int>(sizeof(V));
  static constexpr bool kHolds = false;  // four lanes would keep the same weights

  struct alignas(16) Vector {
    V at[16 / sizeof(V)];
  };

  template <bool kTransposed, int kTiles>
  static FASTRNN_DEVICE void multiply(V (&sums)[kTiles][2][4], const V* a, int lda, const V* b,
                                      int ldb) {
    constexpr int kVector = 16 / static_cast<int>(sizeof(V));
    const int g = thread_index() % 32 / 4, t = thread_index() % 4 * 2;
    for (int k = 0; k < kStep; k += kVector) {
      Vector columns[2][2];
      for (int n = 0; n < 2; ++n)
        for (int j = 0; j < 2; ++j) columns[n][j] = vector(b + (n * 8 + t + j) * ldb + k);
      for (int i = 0; i < kTiles; ++i)
        for (int half = 0; half < 2; ++half) {
          const int row = i * 16 + g + half * 8;
          Vector rows;
          if (kTransposed)
            for (int q = 0; q < kVector; ++q) rows.at[q] = a[(k + q) * lda + row];
          else
            rows = vector(a + row * lda + k);
          for (int q = 0; q < kVector; ++q)
            for (int n = 0; n < 2; ++n)
              for (int j = 0; j < 2; ++j) {
                V& sum = sums[i][n][half * 2 + j];
                sum = FASTRNN_ISA::fma(rows.at[q], columns[n][j].at[q], sum);
              }
        }
    }
  }

 private:
  static FASTRNN_DEVICE Vector vector(const V* p) {
    return *static_cast<const Vector*>(static_cast<const void*>(p));
  }
};

// A block of 16 bytes into shared memory: `count` elements from `from`, zeros behind them. It goes
// asynchronously if the address allows; element by element if rows have odd lengths.
template <class S>
FASTRNN_DEVICE void copy16(S* to, const S* from, int count) {
  constexpr int kVector = 16 / static_cast<int>(sizeof(S));
  if (count > kVector) count = kVector;
  if (count > 0 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    cp_async16(to, from, count * static_cast<int>(sizeof(S)));
  } else {
    for (int i = 0; i < kVector; ++i) to[i] = i < count ? from[i] : S{};
  }
}

}  // namespace fastrnn::cuda
