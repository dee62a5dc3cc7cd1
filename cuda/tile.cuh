// The sums of a tile: some rows of a weight matrix times some sequences. Each step of a product
// over k belongs to one of kParts parts, each part to its own warps; the parts are added in order
// at the end. Every kernel divides k like that, so that a sum does not depend on the kernel or the
// batch.
#pragma once

#include "formats.cuh"

namespace fastrnn::cuda {

constexpr int kParts = 4;

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
  // Partial sums go to partial[part][column][row].
  static FASTRNN_DEVICE void leave(const Value (&sums)[kTiles][2][4], Value* partial, int width,
                                   int part, int first_column) {
    const int g = thread_index() % 32 / 4, t = thread_index() % 4 * 2;
    for (int i = 0; i < kTiles; ++i)
      for (int n = 0; n < 2; ++n)
        for (int j = 0; j < 4; ++j) {
          const int row = i * 16 + g + j / 2 * 8, column = first_column + n * 8 + t + j % 2;
          partial[(part * width + column) * kPitch + row] = sums[i][n][j];
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

}  // namespace fastrnn::cuda
