// The sums of a tile: some rows of a weight matrix times some sequences. Each step of a product
// over k belongs to one of kParts parts, each part to its own warps; the parts are added in order
// at the end. Every kernel divides k like that, so that a sum does not depend on the kernel or the
// batch.
#pragma once

#include "formats.cuh"

namespace fastrnn::cuda {

constexpr int kParts = 4;

// Chunks of k in the registers of a warp that has kTiles tiles: at most 128 registers of a thread.
constexpr int held_chunks(int tiles) { return 32 / tiles; }

template <class F, int kTiles>
struct Tile {
  using Storage = typename F::Storage;
  using Value = typename F::Value;
  static constexpr int kVector = 16 / static_cast<int>(sizeof(Storage));
  static constexpr int kChunk = kParts * F::kStep;  // of k
  static constexpr int kRows = kTiles * 16;
  static constexpr int kPitch = kRows + 1;  // of the partial sums of a column

  // A chunk's step of one part for this warp, whose columns begin at `columns`.
  template <bool kTransposed>
  static FASTRNN_DEVICE void add(Value (&sums)[kTiles][2][4], const Storage* weights,
                                 int weights_pitch, const Storage* columns, int pitch, int part) {
    const int k = part * F::kStep;
    F::template multiply<kTransposed>(sums, weights + (kTransposed ? k * weights_pitch : k),
                                      weights_pitch, columns + k, pitch);
  }
  // Partial sums of a warp's tiles, the first of rows from `row`, go to
  // partial[row / kRows][part][column][row % kRows].
  template <int kTilesOfWarp>
  static FASTRNN_DEVICE void leave(const Value (&sums)[kTilesOfWarp][2][4], Value* partial,
                                   int width, int part, int first_column, int first_row = 0) {
    const int g = thread_index() % 32 / 4, t = thread_index() % 4 * 2;
    for (int i = 0; i < kTilesOfWarp; ++i) {
      const int tile_row = first_row + i * 16, pair = tile_row / kRows;
      for (int n = 0; n < 2; ++n)
        for (int j = 0; j < 4; ++j) {
          const int row = tile_row % kRows + g + j / 2 * 8;
          const int column = first_column + n * 8 + t + j % 2;
          partial[((pair * kParts + part) * width + column) * kPitch + row] = sums[i][n][j];
        }
    }
  }
  static FASTRNN_DEVICE Value total(Value start, const Value* partial, int width, int column,
                                    int row) {
    Value sum = start;
    for (int part = 0; part < kParts; ++part)
      sum = sum + partial[(part * width + column) * kPitch + row];
    return sum;
  }
};

// Weights of a warp that stay in its registers: kTiles tiles of 16 rows, of the first chunks of k
// the step of its part. Two groups of kParts warps have half of a block's rows each.
template <class F, int kTiles>
struct Held {
  static constexpr int kChunks = held_chunks(kTiles);
  typename F::Rows at[kChunks][kTiles];

  // Chunks come in one after the other at the end, in a loop that is not unrolled: unrolled, ptxas
  // would begin with the addresses of all, and spill them.
  FASTRNN_DEVICE void shift() {
    FASTRNN_UNROLL
    for (int i = 0; i + 1 < kChunks; ++i)
      for (int tile = 0; tile < kTiles; ++tile) at[i][tile] = at[i + 1][tile];
  }
  FASTRNN_DEVICE typename F::Rows (&last()) [kTiles] { return at[kChunks - 1]; }
};
template <class F>
struct Held<F, 0> {};

}  // namespace fastrnn::cuda
