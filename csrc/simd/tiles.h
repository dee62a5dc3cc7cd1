// Products in the tile registers of AMX: 16 rows of 16 words each. A tile of A times a tile of a
// panel, 16 words of k, is one instruction; it adds the products of a word's even and of its odd
// part up apart, in float32 and in order of k, and their sum to the accumulator. Such chunks of 16
// words start at fixed places, so that here too a result does not depend on rows or blocking.
#pragma once

#include "factors.h"

namespace fastrnn::FASTRNN_ISA {

constexpr int kTileRows = 16, kChunkWords = 16;

// tile_product (see product.h) of the rows that the tiles are configured for.
template <class F>
void tile_product_amx(int columns, int rows, int64_t words, const typename F::Left* a, int64_t lda,
                      const typename F::Sum* panel, const typename F::Sum* init, int64_t init_row,
                      typename F::Sum* out);

#ifdef FASTRNN_HAS_TILES
template <class F>
inline constexpr bool kTiled = F::kGroup > 1;
// Sums of 8-bit products are exact by either way, and of few rows vectors are faster.
template <class F>
inline constexpr int kLeastTiledRows = 1;
template <>
inline constexpr int kLeastTiledRows<Int8Factors> = 8;

// While one lives, the tiles of this thread are ours: nothing else on it may run that uses AMX.
// Configuring them takes 0.1 us, so whoever makes several products opens one around them.
class TileScope {
 public:
  explicit TileScope(bool held = true) : held_(held) { live().depth += held_; }
  ~TileScope() {
    live().depth -= held_;
    if (live().depth > 0 || live().rows == 0) return;
    _tile_release();
    live().rows = 0;
  }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;

  // Accumulators (0 to 3) and the tile of A (4) get so many rows; those of panels (5 to 7) have 16.
  void configure(int rows) const {
    if (live().rows == rows) return;
    live().rows = rows;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } to;
    for (int i = 0; i < 8; ++i) {
      to.row_bytes[i] = 64;
      to.rows[i] = uint8_t(i < 5 ? rows : kTileRows);
    }
    asm volatile("" ::: "memory");
    _tile_loadconfig(&to);
  }

 private:
  bool held_;
  struct Live {
    int depth = 0, rows = 0;  // 0: not configured
  };
  static Live& live() {
    static thread_local Live state;
    return state;
  }
};

template <class F>
struct TileChunk;

// GCC's tile intrinsics paste the register's number into text: it must be a literal.
#define FASTRNN_TILE_CHUNK(factors, multiply)                                    \
  template <>                                                                    \
  struct TileChunk<factors> {                                                    \
    template <int C>                                                             \
    static void add(const void* a, int64_t a_bytes, const factors::Sum* panel) { \
      constexpr int64_t row = C * 64;                                            \
      _tile_loadd(4, a, a_bytes);                                                \
      _tile_loadd(5, panel, row);                                                \
      multiply(0, 4, 5);                                                         \
      if constexpr (C > 1) {                                                     \
        _tile_loadd(6, panel + 16, row);                                         \
        multiply(1, 4, 6);                                                       \
      }                                                                          \
      if constexpr (C > 2) {                                                     \
        _tile_loadd(7, panel + 32, row);                                         \
        multiply(2, 4, 7);                                                       \
      }                                                                          \
      if constexpr (C > 3) {                                                     \
        _tile_loadd(5, panel + 48, row);                                         \
        multiply(3, 4, 5);                                                       \
      }                                                                          \
    }                                                                            \
    /* The registers' contents are zeros: they have only been configured. */     \
    static void multiply_registers() {                                           \
      multiply(0, 4, 5);                                                         \
      multiply(1, 4, 6);                                                         \
      multiply(2, 4, 5);                                                         \
      multiply(3, 4, 6);                                                         \
    }                                                                            \
  };
FASTRNN_TILE_CHUNK(Bfloat16Factors, _tile_dpbf16ps)
FASTRNN_TILE_CHUNK(Int8Factors, _tile_dpbusd)
#undef FASTRNN_TILE_CHUNK

template <class F, int C>
void tile_product_amx(int rows, int64_t words, const typename F::Left* a, int64_t lda,
                      const typename F::Sum* panel, const typename F::Sum* init, int64_t init_row,
                      typename F::Sum* out) {
  using Sum = typename F::Sum;
  constexpr int W = 16;
  const int64_t a_bytes = lda * int64_t(sizeof *a), init_bytes = init_row * int64_t(sizeof(Sum));
  // GCC does not know that loads of tiles read memory.
  asm volatile("" ::: "memory");
  _tile_loadd(0, init, init_bytes);
  if constexpr (C > 1) _tile_loadd(1, init + W, init_bytes);
  if constexpr (C > 2) _tile_loadd(2, init + 2 * W, init_bytes);
  if constexpr (C > 3) _tile_loadd(3, init + 3 * W, init_bytes);
  for (; words >= kChunkWords; words -= kChunkWords) {
    TileChunk<F>::template add<C>(a, a_bytes, panel);
    a += kChunkWords * F::kGroup, panel += kChunkWords * C * W;
  }
  if (words > 0) {
    // Zeros behind the last words, of both: what lies there may be anything.
    alignas(64) Sum a_words[kTileRows * kChunkWords], panel_words[kChunkWords * C * W];
    const auto valid = __mmask16((1u << words) - 1);
    for (int r = 0; r < rows; ++r)
      _mm512_store_si512(a_words + r * kChunkWords, _mm512_maskz_loadu_epi32(valid, a + r * lda));
    for (int64_t i = 0; i < kChunkWords * C; ++i)
      _mm512_store_si512(panel_words + i * W, i < words * C ? _mm512_loadu_si512(panel + i * W)
                                                            : _mm512_setzero_si512());
    asm volatile("" ::: "memory");
    TileChunk<F>::template add<C>(a_words, kChunkWords * int64_t(sizeof(Sum)), panel_words);
  }
  constexpr int64_t row = C * 64;
  _tile_stored(0, out, row);
  if constexpr (C > 1) _tile_stored(1, out + W, row);
  if constexpr (C > 2) _tile_stored(2, out + 2 * W, row);
  if constexpr (C > 3) _tile_stored(3, out + 3 * W, row);
}

template <class F>
void tile_product_amx(int columns, int rows, int64_t words, const typename F::Left* a, int64_t lda,
                      const typename F::Sum* panel, const typename F::Sum* init, int64_t init_row,
                      typename F::Sum* out) {
  switch (columns) {
    case 1:
      return tile_product_amx<F, 1>(rows, words, a, lda, panel, init, init_row, out);
    case 2:
      return tile_product_amx<F, 2>(rows, words, a, lda, panel, init, init_row, out);
    case 3:
      return tile_product_amx<F, 3>(rows, words, a, lda, panel, init, init_row, out);
    default:
      return tile_product_amx<F, 4>(rows, words, a, lda, panel, init, init_row, out);
  }
}

// Denormal numbers are zeros and rounding is to nearest while one lives, as in tiles.
class TileArithmetic {
 public:
  TileArithmetic() : before_(_mm_getcsr()) {
    constexpr unsigned kNoTraps = 0x1f80, kFlushResults = 0x8000, kFlushOperands = 0x40;
    _mm_setcsr(kNoTraps | kFlushResults | kFlushOperands);
  }
  ~TileArithmetic() { _mm_setcsr(before_); }

 private:
  unsigned before_;
};

// The sums that tiles make of one row, bit for bit, by vectors: while the core's other thread uses
// its tiles they take up to four times as long, and one row leaves 15 of 16 rows unused. A call,
// since GCC does not know that MXCSR, see TileArithmetic, matters to arithmetic.
template <int C>
[[gnu::noinline]] void row_product(int64_t words, const Bfloat16* a, const float* panel,
                                   const float* init, float* out) {
  using V = Vec<float>;
  constexpr int W = V::kWidth;
  const auto low = [](Bits<float> word) { return V((Native<float>)(word << 16)); };
  const auto high = [](Bits<float> word) { return V((Native<float>)(word & 0xffff0000u)); };
  V sum[C];
  for (int c = 0; c < C; ++c) sum[c] = V::load(init + c * W);
  for (; words > 0; words -= kChunkWords, a += 2 * kChunkWords) {
    const int n = int(words < kChunkWords ? words : kChunkWords);
    const auto row = (Bits<float>)_mm512_maskz_loadu_epi32(__mmask16((1u << n) - 1), a);
    alignas(64) float x[2][kChunkWords];
    low(row).store(x[0]), high(row).store(x[1]);
    V even[C], odd[C];
    for (int c = 0; c < C; ++c) even[c] = odd[c] = V(0);
    for (int i = 0; i < n; ++i, panel += C * W)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        const auto word = (Bits<float>)V::load(panel + c * W).v;
        even[c] = fma(V(x[0][i]), low(word), even[c]);
        odd[c] = fma(V(x[1][i]), high(word), odd[c]);
      }
    // Tiles have zeros behind the last words: they make a negative zero a positive one.
    const V zero(0);
    for (int c = 0; n < kChunkWords && c < C; ++c) even[c] = even[c] + zero, odd[c] = odd[c] + zero;
    for (int c = 0; c < C; ++c) sum[c] = sum[c] + (even[c] + odd[c]);
  }
  for (int c = 0; c < C; ++c) sum[c].store(out + c * W);
}

// Of 8-bit numbers vectors take over from tiles anyway, see kLeastTiledRows.
inline void row_product(int columns, int64_t words, const Bfloat16* a, const float* panel,
                        const float* init, float* out) {
  const TileArithmetic arithmetic;
  switch (columns) {
    case 1:
      return row_product<1>(words, a, panel, init, out);
    case 2:
      return row_product<2>(words, a, panel, init, out);
    case 3:
      return row_product<3>(words, a, panel, init, out);
    default:
      return row_product<4>(words, a, panel, init, out);
  }
}

#else
template <class F>
inline constexpr bool kTiled = false;
template <class F>
inline constexpr int kLeastTiledRows = 0;

struct TileScope {
  explicit TileScope(bool = true) {}
  void configure(int) const {}
};
#endif

}  // namespace fastrnn::FASTRNN_ISA
