// Products in the tile registers of AMX: 16 rows of 16 words each. A tile of A times a tile of a
// panel, 16 words of k, is one instruction; it adds the products of a word's even and of its odd
// part up apart, in float32 and in order of k, and their sum to the accumulator. Such chunks of 16
// words start at fixed places, so that here too a result does not depend on rows or blocking.
#pragma once

#include "factors.h"

namespace fastrnn::FASTRNN_ISA {

constexpr int kTileRows = 16, kChunkWords = 16;

// The rows of one tile, what their sums start from, and where these go.
template <class F>
struct RowTile {
  const typename F::Left* a;
  const typename F::Sum* init;
  typename F::Sum* out;
};

// So many words of a panel, and what is read after them. While they are multiplied the chunk that
// follows is asked for, at the end `next`; or, with `fetch_next`, the same chunk of `next`.
template <class F>
struct TilePanel {
  const typename F::Sum* data;
  int columns;
  int64_t words;
  const typename F::Sum* next;
  bool fetch_next;
};

// tile_product (see product.h) of one tile of rows, or of two, and a panel.
template <class F>
void tile_product_amx(const TilePanel<F>& panel, int rows, int64_t lda, int64_t init_row, int tiles,
                      const RowTile<F>* tile);

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

  // Accumulators (0 to 3) and tiles of A (4, of two also 5) get so many rows; those of panels (6, 7
  // and else 5) have 16.
  void configure(int rows, bool two) const {
    two |= rows == kTileRows;  // then it makes no difference
    if (live().rows == rows && live().two == two) return;
    live().rows = rows, live().two = two;
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } to;
    for (int i = 0; i < 8; ++i) {
      to.row_bytes[i] = 64;
      to.rows[i] = uint8_t(i < 5 + two ? rows : kTileRows);
    }
    asm volatile("" ::: "memory");
    _tile_loadconfig(&to);
  }

 private:
  bool held_;
  struct Live {
    int depth = 0, rows = 0;  // 0: not configured
    bool two = false;
  };
  static Live& live() {
    static thread_local Live state;
    return state;
  }
};

// Asks for the words [begin, end) of C columns of a chunk, to L1. Always inline: GCC takes a call
// that only prefetches for one that does nothing.
template <int C>
FASTRNN_HD void fetch_words(const void* chunk, int64_t row, int begin, int end) {
  const char* at = static_cast<const char*>(chunk);
#pragma GCC unroll 16
  for (int k = begin; k < end; ++k)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) __builtin_prefetch(at + k * row + c * 64, 0, 3);
}

template <class F>
struct TileChunk;

// GCC's tile intrinsics paste the register's number into text: it must be a literal. One tile of
// rows has up to four columns, two of them have two: each load of a column then serves both. The
// next chunk is asked for meanwhile: while the core's other thread is busy, half of its queues are
// ours, and loads of tiles alone do not get far enough ahead.
#define FASTRNN_TILE_CHUNK(factors, multiply)                                                      \
  template <>                                                                                      \
  struct TileChunk<factors> {                                                                      \
    template <int R, int C>                                                                        \
    static void add(const void* a, const void* second, int64_t a_bytes, const factors::Sum* panel, \
                    int64_t row, const factors::Sum* next, int64_t next_row) {                     \
      static_assert(R * C <= 4, "accumulators");                                                   \
      _tile_loadd(4, a, a_bytes);                                                                  \
      _tile_loadd(6, panel, row);                                                                  \
      if constexpr (C > 1) _tile_loadd(7, panel + 16, row);                                        \
      if constexpr (R > 1) _tile_loadd(5, second, a_bytes);                                        \
      if constexpr (C > 2) _tile_loadd(5, panel + 32, row);                                        \
      multiply(0, 4, 6);                                                                           \
      fetch_words<C>(next, next_row, 0, 8);                                                        \
      if constexpr (C > 3) _tile_loadd(6, panel + 48, row);                                        \
      if constexpr (C > 1) multiply(1, 4, 7);                                                      \
      fetch_words<C>(next, next_row, 8, 16);                                                       \
      if constexpr (R > 1) multiply(2, 5, 6);                                                      \
      if constexpr (R > 1 && C > 1) multiply(3, 5, 7);                                             \
      if constexpr (C > 2) multiply(2, 4, 5);                                                      \
      if constexpr (C > 3) multiply(3, 4, 6);                                                      \
    }                                                                                              \
    /* The registers' contents are zeros: they have only been configured. */                       \
    static void multiply_registers() {                                                             \
      multiply(0, 4, 6);                                                                           \
      multiply(1, 4, 7);                                                                           \
      multiply(2, 5, 6);                                                                           \
      multiply(3, 5, 7);                                                                           \
    }                                                                                              \
  };
FASTRNN_TILE_CHUNK(Bfloat16Factors, _tile_dpbf16ps)
FASTRNN_TILE_CHUNK(Int8Factors, _tile_dpbusd)
#undef FASTRNN_TILE_CHUNK

// R tiles of rows times the C columns from `first` on of a panel.
template <class F, int R, int C>
void tile_product_amx(const TilePanel<F>& p, int first, int rows, int64_t lda, int64_t init_row,
                      const RowTile<F>* tile) {
  using Sum = typename F::Sum;
  constexpr int W = 16;
  constexpr int64_t kSum = sizeof(Sum);
  const int64_t a_bytes = lda * int64_t(sizeof *tile->a), init_bytes = init_row * kSum;
  const int64_t row = p.columns * W * kSum, chunk = kChunkWords * p.columns * W;
  const typename F::Left *a = tile[0].a, *second = tile[R - 1].a;
  const Sum *init = tile[0].init + first * W, *init_second = tile[R - 1].init + first * W;
  const Sum* panel = p.data + first * W;
  const Sum* then = first + C < p.columns ? panel + C * W : p.next;
  const bool elsewhere = p.fetch_next;
  const int64_t ahead = elsewhere ? p.next - p.data : chunk;
  // GCC does not know that loads of tiles read memory.
  asm volatile("" ::: "memory");
  _tile_loadd(0, init, init_bytes);
  if constexpr (C > 1) _tile_loadd(1, init + W, init_bytes);
  if constexpr (R > 1 || C > 2) _tile_loadd(2, R > 1 ? init_second : init + 2 * W, init_bytes);
  if constexpr (R * C > 3) _tile_loadd(3, R > 1 ? init_second + W : init + 3 * W, init_bytes);
  int64_t words = p.words;
  for (; words >= kChunkWords; words -= kChunkWords, panel += chunk) {
    const bool last = words <= kChunkWords && !elsewhere;
    TileChunk<F>::template add<R, C>(a, second, a_bytes, panel, row, last ? then : panel + ahead,
                                     row);
    a += kChunkWords * F::kGroup, second += kChunkWords * F::kGroup;
  }
  if (words > 0) {
    // Zeros behind the last words, of both: what lies there may be anything.
    alignas(64) Sum a_words[R][kTileRows * kChunkWords], panel_words[kChunkWords * C * W];
    const auto valid = __mmask16((1u << words) - 1);
    for (int r = 0; r < rows; ++r)
      for (int i = 0; i < R; ++i)
        _mm512_store_si512(a_words[i] + r * kChunkWords,
                           _mm512_maskz_loadu_epi32(valid, (i ? second : a) + r * lda));
    for (int k = 0; k < kChunkWords; ++k)
      for (int c = 0; c < C; ++c)
        _mm512_store_si512(panel_words + (k * C + c) * W,
                           k < words ? _mm512_loadu_si512(panel + (k * p.columns + c) * W)
                                     : _mm512_setzero_si512());
    asm volatile("" ::: "memory");
    TileChunk<F>::template add<R, C>(a_words[0], a_words[R - 1], kChunkWords * kSum, panel_words,
                                     C * W * kSum, elsewhere ? panel + ahead : then, row);
  }
  Sum *out = tile[0].out + first * W, *out_second = tile[R - 1].out + first * W;
  _tile_stored(0, out, row);
  if constexpr (C > 1) _tile_stored(1, out + W, row);
  if constexpr (R > 1 || C > 2) _tile_stored(2, R > 1 ? out_second : out + 2 * W, row);
  if constexpr (R * C > 3) _tile_stored(3, R > 1 ? out_second + W : out + 3 * W, row);
}

template <class F>
void tile_product_amx(const TilePanel<F>& panel, int rows, int64_t lda, int64_t init_row, int tiles,
                      const RowTile<F>* tile) {
  const auto multiply = [&](auto product, int first) {
    product(panel, first, rows, lda, init_row, tile);
  };
  if (tiles > 1) {
    for (int c = 0; c + 1 < panel.columns; c += 2) multiply(tile_product_amx<F, 2, 2>, c);
    if (panel.columns % 2) multiply(tile_product_amx<F, 2, 1>, panel.columns - 1);
    return;
  }
  switch (panel.columns) {
    case 1:
      return multiply(tile_product_amx<F, 1, 1>, 0);
    case 2:
      return multiply(tile_product_amx<F, 1, 2>, 0);
    case 3:
      return multiply(tile_product_amx<F, 1, 3>, 0);
    default:
      return multiply(tile_product_amx<F, 1, 4>, 0);
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

inline void row_product(const TilePanel<Bfloat16Factors>& p, const RowTile<Bfloat16Factors>& row) {
  const TileArithmetic arithmetic;
  switch (p.columns) {
    case 1:
      return row_product<1>(p.words, row.a, p.data, row.init, row.out);
    case 2:
      return row_product<2>(p.words, row.a, p.data, row.init, row.out);
    case 3:
      return row_product<3>(p.words, row.a, p.data, row.init, row.out);
    default:
      return row_product<4>(p.words, row.a, p.data, row.init, row.out);
  }
}
// Of 8-bit numbers vectors take over from tiles anyway, see kLeastTiledRows.
inline void row_product(const TilePanel<Int8Factors>&, const RowTile<Int8Factors>&) {}

#else
template <class F>
inline constexpr bool kTiled = false;
template <class F>
inline constexpr int kLeastTiledRows = 0;

struct TileScope {
  explicit TileScope(bool = true) {}
  void configure(int, bool) const {}
};
#endif

}  // namespace fastrnn::FASTRNN_ISA
