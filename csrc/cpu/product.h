// The one matrix product: rows of A times a packed matrix, in register tiles.
//
// A packed matrix is a list of panels. For one vector-width block of output columns (or up to four
// blocks, when there is one gate) a panel holds, for each k, the weights of all gates side by side,
// so that a tile of `rows x gates x blocks` accumulators streams one panel. In front of a panel lie
// the values that its accumulators start from: the bias, or zeros. Where four columns and enough
// rows have no room in the registers, a panel is two strips of two columns, one behind the other.
//
// Every output is one chain of multiply-adds over ascending k, whatever the tile, the number of
// rows or the blocking of k (a partial chain waits in memory at full precision). This is what makes
// results independent of batch size and threads. The chains advance by words, see format.h.
#pragma once

#include "../simd/tiles.h"
#include "rows.h"

namespace fastrnn::FASTRNN_ISA {

// Accumulators, the weights of a strip and one broadcast must fit the registers. Here and below
// nothing is divided that every step of a single row would wait for.
constexpr int kAccumulators = kRegisters == 32 ? 24 : 12;
constexpr int strip_columns(int columns) { return kRegisters == 16 && columns == 4 ? 2 : columns; }
inline constexpr int kTileRowsOf[] = {12, kAccumulators / 2, kAccumulators / 3,
                                      kAccumulators / strip_columns(4)};
constexpr int max_tile_rows(int columns) { return kTileRowsOf[columns - 1]; }
constexpr int kMaxColumns = 4;  // vectors per k in a panel
// Vectors side by side in panels of rows, which sums over rows read: in one strip.
constexpr int kRowColumns = strip_columns(kMaxColumns);
// Of A, side by side for each word, where A was packed. Vectors of AVX2 hold about a tile of them,
// which is then read from end to end: rows of all tiles side by side would take a line for each
// tile's part of a word, and with it the place of the other factor in L1. Of larger vectors a tile
// is a part, so that several of them are packed at once.
constexpr int kPackedRows = kRegisters == 32 ? 48 : max_tile_rows(kRowColumns);
#ifdef FASTRNN_HAS_TILES
constexpr int kMaxTileRows = kTileRows;
#else
constexpr int kMaxTileRows = 12;
#endif
constexpr int kLine = 64;           // bytes of a line of the caches
constexpr int kOwnLines = -1;       // in place of a number of lines: see tile_product
constexpr int kOwnAhead = 4 << 10;  // bytes

// Asks for the lines of a word of a panel that is read some time after this one, to L1.
template <int N, class T>
void fetch_own(const T* word) {
  const char* ahead = reinterpret_cast<const char*>(word) + kOwnAhead;
#pragma GCC unroll 4
  for (int i = 0; i < N * int(sizeof(T)); i += kLine) __builtin_prefetch(ahead + i, 0, 3);
}

// out[r][c] = init[r][c] + sum over words k of a(r, k) panel[k][c] for the first C of the columns
// of a tile that has `kRow`, c counting vectors; a(r, k) is word k of the row at a + r * lda, or
// word k * kPackedRows + r of a where A was packed. Columns are in strips, which lie `strip`
// elements apart in the panel, as do their starts in front of it (init_row 0). There is at least
// one word: GCC moves all accumulators through memory for the sake of a loop that may not run. With
// each word kLines lines from `ahead` on are brought to L2, of what a later tile reads; or
// kOwnLines: those of the panel itself, see fetch_own(). Of 16 registers 3 x 4 sums, 3 rows and a
// column take all where a multiply-add is one instruction, so there the rows are held where they
// are fewer than columns.
template <class F, int R, int C, int kRow, bool kPackedA, int kLines>
FASTRNN_HD void multiply_columns(int64_t k, const typename F::Left* a, int64_t lda,
                                 const typename F::Sum* panel, int64_t strip,
                                 const typename F::Sum* init, int64_t init_row,
                                 typename F::Sum* out, const char* ahead) {
  using V = Vec<typename F::Sum>;
  constexpr int W = V::kWidth, S = strip_columns(C);
  const int64_t init_strip = init_row ? S * W : strip;
  V sum[R][C];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c)
      sum[r][c] = V::load(init + r * init_row + c / S * init_strip + c % S * W);
  constexpr bool kHoldRows = kRegisters == 16 && R < C;
  const auto row_word = [&](int r, int step) {
    return F::broadcast(a + (kPackedA ? r * F::kGroup : r * lda), step);
  };
  const auto column_word = [&](int c, int step) {
    return F::load(panel + c / S * strip + c % S * W, step);
  };
  const auto multiply_add = [&](int step) {
    typename F::Word held[kHoldRows ? R : C];
#pragma GCC unroll 12
    for (int i = 0; i < (kHoldRows ? R : C); ++i)
      held[i] = kHoldRows ? row_word(i, step) : column_word(i, step);
    if constexpr (kHoldRows) {
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) {
        const typename F::Word w = column_word(c, step);
#pragma GCC unroll 12
        for (int r = 0; r < R; ++r) sum[r][c] = F::multiply_add(held[r], w, sum[r][c]);
      }
    } else {
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const typename F::Word x = row_word(r, step);
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) sum[r][c] = F::multiply_add(x, held[c], sum[r][c]);
      }
    }
  };
  do {
    if constexpr (kLines == kOwnLines)
#pragma GCC unroll 2
      for (int c = 0; c < C; c += S) fetch_own<S * W>(panel + c / S * strip);
#pragma GCC unroll 2
    for (int l = 0; l < kLines; ++l, ahead += kLine) __builtin_prefetch(ahead, 0, 2);
#pragma GCC unroll 2
    for (int step = 0; step < F::kSteps; ++step) multiply_add(step);
    panel += S * W;
    a += (kPackedA ? kPackedRows : 1) * F::kGroup;
  } while (--k > 0);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) sum[r][c].store(out + (r * kRow + c) * W);
}

// R rows times all C columns of a panel: both strips at once where there is room, or one by one.
template <class F, int R, int C, bool kPackedA, int kLines>
void tile_product(int64_t k, const typename F::Left* a, int64_t lda, const typename F::Sum* panel,
                  int64_t strip, const typename F::Sum* init, int64_t init_row,
                  typename F::Sum* out, const char* ahead) {
  constexpr int S = R * C <= kAccumulators ? C : strip_columns(C), W = Vec<typename F::Sum>::kWidth;
  multiply_columns<F, R, S, C, kPackedA, kLines>(k, a, lda, panel, strip, init, init_row, out,
                                                 ahead);
  if constexpr (S < C)
    multiply_columns<F, R, S, C, kPackedA, kLines == kOwnLines ? kOwnLines : 0>(
        k, a, lda, panel + strip, strip, init + (init_row ? S * W : strip), init_row, out + S * W,
        nullptr);
}

template <class F>
using TileProduct = void (*)(int64_t k, const typename F::Left* a, int64_t lda,
                             const typename F::Sum* panel, int64_t strip,
                             const typename F::Sum* init, int64_t init_row, typename F::Sum* out,
                             const char* ahead);

// Only large tiles have the time to fetch for others.
constexpr bool can_fetch(int rows, int columns, int lines) {
  return columns >= 3 && (lines == kOwnLines || 2 * rows >= max_tile_rows(columns));
}

// tile_product of a run-time size: table[columns - 1][rows - 1].
template <class F, bool kPackedA, int kLines>
struct TileTable {
  TileProduct<F> entry[kMaxColumns][kMaxTileRows] = {};

  constexpr TileTable() { fill_columns<1>(); }

  template <int C>
  constexpr void fill_columns() {
    fill_rows<C, 1>();
    if constexpr (C < kMaxColumns) fill_columns<C + 1>();
  }
  template <int C, int R>
  constexpr void fill_rows() {
    constexpr int kFetched = can_fetch(R, C, kLines) ? kLines : 0;
    entry[C - 1][R - 1] = tile_product<F, R, C, kPackedA, kFetched>;
    if constexpr (R < max_tile_rows(C)) fill_rows<C, R + 1>();
  }
};
template <class F, bool kPackedA, int kLines>
inline constexpr TileTable<F, kPackedA, kLines> kTiles{};

// A matrix larger than this may have left L2 when its turn comes again: what others read and write
// in between takes its place.
constexpr int64_t kFarBytes = 3 << 18;

// A panel longer than this is worked through in parts, each reused by all rows while it is in L2.
constexpr int64_t kPanelBytes = 256 << 10;
constexpr int64_t kTiledPanelBytes = 32 << 10;  // or L1, which alone feeds products in tiles

// Of the tiles that one panel makes, the last ones bring the next panel to L2, evenly: each of its
// lines is asked for once, and one or two with each word, since more would fill the queues to L3.
// Or else the only tile of a panel may fetch its `own` lines.
class FetchAhead {
 public:
  FetchAhead(const void* next, int64_t k, int columns, int64_t tiles, bool own)
      : next_(static_cast<const char*>(next)),
        lines_(columns * kVectorBytes / kLine),
        fetching_(next && tiles > 1 ? (tiles < lines_ ? tiles : lines_) : 0),
        first_(tiles - fetching_),
        column_(k * kLine),
        own_(tiles == 1 && own) {}

  template <class F, bool kPackedA>
  TileProduct<F> tile(int64_t t, int columns, int rows) const {
    const int64_t lines = t < first_ ? 0 : line(t + 1) - line(t);
    constexpr int kOwn = kPackedA ? 0 : kOwnLines;
    const auto& entry = own_         ? kTiles<F, kPackedA, kOwn>.entry
                        : lines == 0 ? kTiles<F, kPackedA, 0>.entry
                        : lines == 1 ? kTiles<F, kPackedA, 1>.entry
                                     : kTiles<F, kPackedA, 2>.entry;
    return entry[columns - 1][rows - 1];
  }
  const char* from(int64_t t) const { return t < first_ ? nullptr : next_ + line(t) * column_; }

 private:
  int64_t line(int64_t t) const { return (t - first_) * lines_ / fetching_; }

  const char* next_;
  int64_t lines_, fetching_, first_, column_;
  bool own_;
};

// One row times the panels p and p + 1 at once: twice the independent chains, since a single row
// has too few to hide the latency of a multiply-add.
template <class F, int R, int C, bool kOwn>
void pair_product(int64_t k, const typename F::Left* a, int64_t lda, const typename F::Sum* panel,
                  int64_t panel_stride, int64_t strip, typename F::Sum* out, int64_t out_stride) {
  using V = Vec<typename F::Sum>;
  constexpr int W = V::kWidth, S = strip_columns(C);
  V sum[2][R][C];
  const auto column = [&](int p, int c) {
    return panel + p * panel_stride + c / S * strip + c % S * W;
  };
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p)
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[p][r][c] = V::load(column(p, c));
  panel += S * W;
  do {
#pragma GCC unroll 2
    for (int p = 0; p < 2; ++p) {
      if constexpr (kOwn)
#pragma GCC unroll 2
        for (int c = 0; c < C; c += S) fetch_own<S * W>(column(p, c));
#pragma GCC unroll 2
      for (int step = 0; step < F::kSteps; ++step) {
        typename F::Word w[C];
#pragma GCC unroll 4
        for (int c = 0; c < C; ++c) w[c] = F::load(column(p, c), step);
#pragma GCC unroll 3
        for (int r = 0; r < R; ++r) {
          const typename F::Word x = F::broadcast(a + r * lda, step);
#pragma GCC unroll 4
          for (int c = 0; c < C; ++c) sum[p][r][c] = F::multiply_add(x, w[c], sum[p][r][c]);
        }
      }
    }
    panel += S * W;
    a += F::kGroup;
  } while (--k > 0);
#pragma GCC unroll 2
  for (int p = 0; p < 2; ++p)
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int c = 0; c < C; ++c) sum[p][r][c].store(out + p * out_stride + (r * C + c) * W);
}

template <class F>
using PairProduct = void (*)(int64_t k, const typename F::Left* a, int64_t lda,
                             const typename F::Sum* panel, int64_t panel_stride, int64_t strip,
                             typename F::Sum* out, int64_t out_stride);
constexpr int max_pair_rows(int columns) {
  return max_tile_rows(columns) < 8 ? 1 : max_tile_rows(columns) / 4;
}

template <class F, bool kOwn>
struct PairTable {
  PairProduct<F> entry[kMaxColumns][3] = {};
  constexpr PairTable() { fill_columns<1>(); }
  template <int C>
  constexpr void fill_columns() {
    fill_rows<C, 1>();
    if constexpr (C < kMaxColumns) fill_columns<C + 1>();
  }
  template <int C, int R>
  constexpr void fill_rows() {
    entry[C - 1][R - 1] = pair_product<F, R, C, kOwn>;
    if constexpr (R < max_pair_rows(C)) fill_rows<C, R + 1>();
  }
};
template <class F, bool kOwn>
inline constexpr PairTable<F, kOwn> kPairs{};

// The geometry of a packed matrix with `gates` groups of `units` columns and k rows.
template <class F>
struct Panels {
  using Sum = typename F::Sum;
  static constexpr int W = Vec<Sum>::kWidth;
  Sum* data = nullptr;
  int64_t k = 0, units = 0;
  int gates = 1;
  int64_t first = 0;  // the panel at `data`, if not all are there

  int blocks_per_panel() const { return gates == 1 ? kMaxColumns : 1; }
  int columns() const { return gates * blocks_per_panel(); }  // of every panel but the last
  int64_t blocks() const { return (units + W - 1) / W; }
  int64_t count() const {
    return gates == 1 ? (blocks() + kMaxColumns - 1) / kMaxColumns : blocks();
  }
  int columns(int64_t p) const {
    const int64_t rest = blocks() - p * blocks_per_panel();
    return gates * int(rest < blocks_per_panel() ? rest : blocks_per_panel());
  }
  // The first unit of column c of panel p.
  int64_t unit(int64_t p, int c) const { return (gates == 1 ? p * kMaxColumns + c : p) * W; }
  // The first row of the matrix that column c of panel p is made of, of [gates*units,k].
  int64_t row(int64_t p, int c) const { return c % gates * units + unit(p, c); }
  int64_t words() const { return (k + F::kGroup - 1) / F::kGroup; }
  int64_t stride() const { return (words() + 1) * columns() * W; }
  Sum* panel(int64_t p) const { return data + (p - first) * stride(); }
  // Elements from one word to the next in a strip of panel p, and from one strip to the next.
  int64_t word_stride(int64_t p) const { return strip_columns(columns(p)) * W; }
  int64_t strip(int64_t p) const { return (words() + 1) * word_stride(p); }
  // The start of the sums of column c of panel p, before its first word.
  Sum* column(int64_t p, int c) const {
    const int in_strip = strip_columns(columns(p));
    return panel(p) + c / in_strip * strip(p) + c % in_strip * W;
  }
  int64_t size() const { return count() * stride(); }
  bool beyond(int64_t bytes) const { return size() * int64_t(sizeof(Sum)) > bytes; }
};

template <class F>
int64_t k_block(const Panels<F>& w, int64_t rows) {
  const int64_t k = w.words(), bytes = kTiled<F> ? kTiledPanelBytes : kPanelBytes;
  if (k * w.columns() * kVectorBytes <= bytes ||
      rows <= (kTiled<F> ? 2 * kMaxTileRows : max_tile_rows(w.columns())))
    return k > 0 ? k : 1;
  const int64_t limit = bytes / (w.columns() * kVectorBytes);
  const int64_t parts = (k + limit - 1) / limit;
  return round_up((k + parts - 1) / parts, kTiled<F> ? kChunkWords : 1);
}

// Whether the single tiles of few rows, and pairs, ask for their panels' lines themselves, because
// processors do it too late: rows that leave L1 between two panels, and L2 too where much is read
// meanwhile, are waited for, and while they are nothing else is. Of a matrix that L2 holds it costs
// up to a fifth, of one row or two it brings nothing unless panels are long.
template <class F>
bool fetches_own(const Panels<F>& w, int64_t rows) {
  constexpr int64_t kBeyondL2 = 2 << 20;
  return w.beyond(kBeyondL2) && (rows >= 4 || w.words() * w.columns() * kVectorBytes > kPanelBytes);
}

// A reference to the function that gets finished sums, called as done(p, r, n, sums) for rows
// [r, r + n) of panel p. Products are compiled once with it, not once for each of their callers.
template <class Sum>
class Receiver {
 public:
  template <class Done>
  Receiver(const Done& done)
      : done_(&done), call_([](const void* to, int64_t p, int64_t r, int n, Sum* sums) {
          (*static_cast<const Done*>(to))(p, r, n, sums);
        }) {}
  void operator()(int64_t p, int64_t r, int n, Sum* sums) const { call_(done_, p, r, n, sums); }

 private:
  const void* done_;
  void (*call_)(const void* to, int64_t p, int64_t r, int n, Sum* sums);
};

template <class F>
void multiply_pair(const Panels<F>& w, int64_t p, const typename F::Left* a, int64_t lda, int rows,
                   typename F::Sum* out, int64_t out_stride, bool own,
                   const Receiver<typename F::Sum>& done) {
  const auto& entry = own ? kPairs<F, true>.entry : kPairs<F, false>.entry;
  entry[w.columns(p) - 1][rows - 1](w.words(), a, lda, w.panel(p), w.stride(), w.strip(p), out,
                                    out_stride);
  done(p, int64_t(0), rows, out);
  done(p + 1, int64_t(0), rows, out + out_stride);
}

// Where product() leaves its sums: panel p, row r at data + p * panel + r * columns(p) * W. With
// `keep` false they are only handed to done(), and share one small place that stays in L1.
template <class F>
struct Sums {
  typename F::Sum* data;
  bool keep;

  static constexpr int64_t kPlace = (kTiled<F> ? 2 : 1) * kMaxTileRows * kMaxColumns * Panels<F>::W;
  // For up to so many rows and all parts of a team: what is kept lies apart by its panels, or else
  // each part has a small place of its own.
  static int64_t size(const Panels<F>& w, int64_t rows, bool keep, int parts = 1) {
    const int64_t all = w.count() * rows * w.columns() * w.W, places = parts * kPlace;
    return Sums{nullptr, keep}.kept(w, rows) && all > places ? all : places;
  }
  bool kept(const Panels<F>& w, int64_t rows) const { return keep || k_block(w, rows) < w.words(); }
  Sums of_part(int part, bool kept) const { return {kept ? data : data + part * kPlace, keep}; }
};

#ifdef FASTRNN_HAS_TILES
// Words [k0, k0 + k) of panel p, in tiles of equally many rows, two tiles at a time if there are
// two: the last ones begin early where rows are left over, and what they compute twice is dropped.
// `next`, if any, is read after it. If it is `far`, which may have left L2, and there are more than
// two tiles, the last two ask for it.
template <class F, class Done>
void multiply_tiled(const Panels<F>& w, int64_t p, int64_t k0, int64_t k,
                    const typename F::Sum* next, bool far, const typename F::Left* a, int64_t lda,
                    int64_t rows, bool keep, typename F::Sum* out, const TileScope& scope,
                    Done&& done) {
  using Sum = typename F::Sum;
  const int columns = w.columns(p), pair = rows > kTileRows ? 2 : 1;
  const int64_t row = columns * w.W, pairs = (rows + pair * kTileRows - 1) / (pair * kTileRows);
  const int64_t size = (rows + pair * pairs - 1) / (pair * pairs);
  const Sum* start = w.panel(p);
  TilePanel<F> panel = {start + (1 + k0) * row, columns, k, nullptr, false};
  const bool row_alone = rows == 1 && std::is_same_v<F, Bfloat16Factors>;
  if (!row_alone) scope.configure(int(size), pair == 2);
  alignas(64) Sum twice[2][kTileRows * kMaxColumns * 16];
  for (int64_t i = 0; i < pairs; ++i) {
    RowTile<F> tile[2];
    Sum* to[2];
    int64_t at[2], early[2];
    for (int j = 0; j < pair; ++j) {
      at[j] = (i * pair + j) * size;
      const int64_t from = smaller(at[j], rows - size);
      early[j] = at[j] - from;
      to[j] = out + (keep ? smaller(at[j], rows) : j * size) * row;
      tile[j] = {a + from * lda + k0 * F::kGroup, k0 == 0 ? start : out + from * row,
                 early[j] ? twice[j] : to[j]};
    }
    const bool last = i + 1 == pairs;
    panel.next = last && next ? next : panel.data;
    panel.fetch_next = last && far && next && pairs > 1;
    if (row_alone)
      row_product(panel, *tile);
    else
      tile_product_amx<F>(panel, int(size), lda, k0 == 0 ? 0 : row, pair, tile);
    for (int j = 0; j < pair && at[j] < rows; ++j) {
      const int n = int(smaller(size, rows - at[j]));
      if (early[j])
        __builtin_memcpy(to[j], twice[j] + early[j] * row, size_t(n * row) * sizeof(Sum));
      done(at[j], n, to[j]);
    }
  }
}
#endif

// Multiplies `rows` rows of a with the panels [begin, end). `done` gets every row of a panel
// once, when its sums are complete. `descending` takes the panels in reverse order: alternating it
// from call to call keeps the end of a matrix that just exceeds a cache level in that cache.
template <class F>
[[gnu::noinline]] void product(const Panels<F>& w, int64_t begin, int64_t end, bool descending,
                               const typename F::Left* a, int64_t lda, int64_t rows, Sums<F> sums,
                               const Receiver<typename F::Sum>& done) {
  using Sum = typename F::Sum;
  constexpr int W = Vec<Sum>::kWidth;
  if (rows <= 0) return;
  const int64_t words = w.words();
  const int64_t k_step = k_block(w, rows);  // at least 1: without any k there is one pass too
  const bool keep = sums.keep || k_step < words;
  const bool far = w.beyond(kFarBytes), own = fetches_own(w, rows);
  const int64_t row_elements = w.columns() * W, panel_elements = keep ? rows * row_elements : 0;
  const bool in_tiles = kTiled<F> && rows >= kLeastTiledRows<F>;
  const TileScope scope;
  for (int64_t k0 = 0; k0 == 0 || k0 < words; k0 += k_step) {
    const int64_t k = words - k0 < k_step ? words - k0 : k_step;
    const bool complete = k0 + k >= words;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t p = descending ? begin + end - 1 - i : i;
      const int columns = w.columns(p);
      Sum* out = sums.data + p * panel_elements;
      if (words > 0 && rows <= max_pair_rows(columns) && !in_tiles && i + 1 < end) {
        const int64_t low = descending ? p - 1 : p;
        if (w.columns(low) == w.columns(low + 1)) {
          multiply_pair(w, low, a, lda, int(rows), sums.data + low * panel_elements,
                        keep ? panel_elements : rows * row_elements, own, done);
          ++i;
          continue;
        }
      }
      const int64_t after = descending ? p - 1 : p + 1;
      const Sum* next = i + 1 < end ? w.panel(after) + (1 + k0) * w.word_stride(after) : nullptr;
      if constexpr (kTiled<F>) {
        if (in_tiles) {
          multiply_tiled(w, p, k0, k, next, far, a, lda, rows, keep, out, scope,
                         [&](int64_t r, int n, Sum* tile) {
                           if (complete) done(p, r, n, tile);
                         });
          continue;
        }
      }
      const int most = max_tile_rows(columns);
      const int64_t tiles = rows <= most ? 1 : (rows + most - 1) / most;
      const bool adjoining = k == words || strip_columns(columns) == columns;
      const FetchAhead fetch(far && adjoining ? next : nullptr, k, columns, tiles, own);
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t r = tiles == 1 ? 0 : rows * t / tiles;
        const int n = int((tiles == 1 ? rows : rows * (t + 1) / tiles) - r);
        Sum* tile = out + (keep ? r * columns * W : 0);
        if (k > 0)
          fetch.tile<F, false>(t, columns, n)(k, a + r * lda + k0 * F::kGroup, lda,
                                              w.panel(p) + (1 + k0) * w.word_stride(p), w.strip(p),
                                              k0 == 0 ? w.panel(p) : tile,
                                              k0 == 0 ? 0 : columns * W, tile, fetch.from(t));
        else
          for (int i = 0; i < n * columns * W; ++i) tile[i] = w.panel(p)[i % (columns * W)];
        if (complete) done(p, r, n, tile);
      }
    }
  }
}

}  // namespace fastrnn::FASTRNN_ISA
