// Where the rows (t, b) of sequences lie, dense or packed, and the order in which time runs.
#pragma once

#include <fastrnn/fastrnn.h>

#include "format.h"

namespace fastrnn::FASTRNN_ISA {

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Rows of internal buffers: whole vectors, and not a multiple of 1 KiB, which would put the rows
// of a tile on the same few lines of L1.
template <class T>
int64_t padded(int64_t n) {
  constexpr int64_t kWhole = kVectorBytes / sizeof(T);
  const int64_t width = round_up(n, kWhole);
  return width * int64_t(sizeof(T)) % 1024 ? width : width + kWhole;
}

// The rows of one direction in its own time order: step s = 0, 1, ... is at time t(s).
struct Timeline {
  int64_t T, B;
  const int64_t* offsets;  // null: dense
  bool reverse;

  int64_t time(int64_t s) const { return reverse ? T - 1 - s : s; }
  int64_t before(int64_t t) const { return reverse ? t + 1 : t - 1; }
  // Sequences alive at t: the first ones, packed batches being sorted by length. 0 outside [0, T).
  int64_t active(int64_t t) const {
    if (t < 0 || t >= T) return 0;
    return offsets ? offsets[t + 1] - offsets[t] : B;
  }
  // The number of row (t, 0) among all rows.
  int64_t first(int64_t t) const { return offsets ? offsets[t] : t * B; }
};

// Typed access to a [T,B,features] or [N,features] buffer of the caller.
template <class T>
struct View {
  T* data = nullptr;
  const int64_t* offsets = nullptr;
  Strides strides;
  const int64_t* table = nullptr;
  int64_t width = 0;  // of a table: rows in a step; 0: the rows of all steps are evenly spaced

  View() = default;
  View(T* to, const int64_t* packed, const RowTable& rows, Strides by)
      : data(to), offsets(packed), strides(by), table(rows.rows) {
    width = table && by.step != rows.B * by.row ? rows.B : 0;
  }

  T* row(int64_t t, int64_t b) const {
    if (!offsets) return data + t * strides.step + b * strides.row;
    int64_t i = offsets[t] + b;
    if (table) i = table[i];
    return data + (width ? i / width * strides.step + i % width * strides.row : i * strides.row);
  }
  // Addresses of the rows [b, b + count) at t.
  void rows(int64_t t, int64_t b, int count, T** to) const {
    if (table) {
      for (int i = 0; i < count; ++i) to[i] = row(t, b + i);
    } else {
      T* first = row(t, b);
      for (int i = 0; i < count; ++i) to[i] = first + i * strides.row;
    }
  }
};

template <class T>
void copy_row(T* to, const T* from, int64_t n) {
  constexpr int W = Vec<T>::kWidth;
  int64_t i = 0;
  for (; i + W <= n; i += W) Vec<T>::load(from + i).store(to + i);
  if (i < n) Vec<T>::load(from + i, int(n - i)).store(to + i, int(n - i));
}

template <class T>
void fill_row(T* to, T value, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

// Numbers of the caller into an internal row or back, or between two numbers of the same kind.
template <class To, class From>
void convert_row(To* to, const From* from, int64_t n) {
  if constexpr (std::is_same_v<To, From> && sizeof(To) >= 4) {
    copy_row(to, from, n);
  } else if constexpr (std::is_same_v<To, From>) {
    __builtin_memcpy(to, from, size_t(n) * sizeof(To));
  } else {
    constexpr int W = Vec<float>::kWidth;
    for (int64_t i = 0; i < n; i += W) {
      const int count = int(smaller(W, n - i));
      store_value(to + i, load_value(from + i, count), count);
    }
  }
}

// Rows [begin, end) of a [B,n] state into rows of an internal buffer; null: zeros.
template <class T, class S>
void load_state(const S* from, int64_t begin, int64_t end, int64_t n, T* to, int64_t ld) {
  for (int64_t b = begin; b < end; ++b) {
    if (from)
      convert_row(to + b * ld, from + b * n, n);
    else
      fill_row(to + b * ld, T(0), n);
  }
}

}  // namespace fastrnn::FASTRNN_ISA
