// What benchmarks compare with, and the hash that recognises unchanged weights.
#pragma once

#include <fastrnn/fastrnn.h>

#include <chrono>

#include "../simd/tiles.h"
#include "format.h"

namespace fastrnn::FASTRNN_ISA {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// GFLOP/s of independent multiply-adds in registers: the best of many short runs.
template <class F>
double fma_peak_of(double seconds) {
  using V = Vec<typename F::Sum>;
  constexpr int kChains = kRegisters == 32 ? 24 : 12, kRepeats = 20000;
  V sum[kChains];  // in registers: every loop over it is unrolled
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) {
    sum[i].v = Native<typename F::Sum>{};
    asm volatile("" : "+m"(sum[i].v));  // the compiler must not know that they are alike
  }
  const typename F::Left zero[F::kGroup] = {}, *left = zero;
  const typename F::Sum zeros[V::kWidth] = {}, *right = zeros;
  asm volatile("" : "+r"(left), "+r"(right)::"memory");
  const typename F::Word a = F::broadcast(left, 0), w = F::load(right, 0);
  typename F::Sum sink[V::kWidth];
  double best = 0;
  const auto start = std::chrono::steady_clock::now();
  while (seconds_since(start) < seconds) {
    const auto run = std::chrono::steady_clock::now();
    for (int n = 0; n < kRepeats; ++n) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) sum[i] = F::multiply_add(a, w, sum[i]);
    }
    const double products = double(kRepeats) * kChains * V::kWidth * F::kGroup;
    const double flops = 2 * products / seconds_since(run) / 1e9;
    if (flops > best) best = flops;
  }
#pragma GCC unroll 24
  for (int i = 1; i < kChains; ++i) sum[0] = sum[0] + sum[i];
  sum[0].store(sink);
  asm volatile("" ::"r"(sink) : "memory");
  return best;
}

#ifdef FASTRNN_HAS_TILES
template <class F>
double tile_peak_of(double seconds) {
  constexpr int kRepeats = 20000;
  const TileScope scope;
  scope.configure(kTileRows, true);
  double best = 0;
  const auto start = std::chrono::steady_clock::now();
  while (seconds_since(start) < seconds) {
    const auto run = std::chrono::steady_clock::now();
    for (int n = 0; n < kRepeats; ++n) TileChunk<F>::multiply_registers();
    const double products = double(kRepeats) * 4 * kTileRows * 16 * kChunkWords * F::kGroup;
    const double flops = 2 * products / seconds_since(run) / 1e9;
    if (flops > best) best = flops;
  }
  return best;
}
#endif

inline double measure_fma_peak(Dtype dtype, double seconds) {
  switch (dtype) {
    case Dtype::kFloat64:
      return fma_peak_of<PlainFactors<double>>(seconds);
#ifdef FASTRNN_HAS_TILES
    case Dtype::kBfloat16:
      return tile_peak_of<Bfloat16Factors>(seconds);
    case Dtype::kInt8:
      return tile_peak_of<Int8Factors>(seconds);
#else
    case Dtype::kBfloat16:
      return fma_peak_of<Bfloat16Factors>(seconds);
    case Dtype::kInt8:
      return fma_peak_of<Int8Factors>(seconds);
#endif
    default:
      return fma_peak_of<PlainFactors<float>>(seconds);
  }
}

inline double measure_read_bandwidth(void* buffer, size_t bytes, double seconds) {
  using V = Vec<float>;
  constexpr size_t kStep = 8 * V::kWidth;
  const float* p = static_cast<const float*>(buffer);
  const size_t n = bytes / sizeof(float) / kStep * kStep;
  double best = 0;
  const auto start = std::chrono::steady_clock::now();
  while (n > 0 && seconds_since(start) < seconds) {
    const auto run = std::chrono::steady_clock::now();
    const size_t repeats = 1 + (size_t(1) << 22) / bytes;
    V sum[8];
    for (auto& s : sum) s = V(0);
    for (size_t r = 0; r < repeats; ++r)
      for (size_t i = 0; i < n; i += kStep) {
#pragma GCC unroll 8
        for (int j = 0; j < 8; ++j) sum[j] = sum[j] + V::load(p + i + j * V::kWidth);
      }
    const double rate = double(repeats) * double(n) * sizeof(float) / seconds_since(run) / 1e9;
    if (rate > best) best = rate;
    float sink[V::kWidth];
    for (int j = 1; j < 8; ++j) sum[0] = sum[0] + sum[j];
    sum[0].store(sink);
    asm volatile("" ::"r"(sink) : "memory");
  }
  return best;
}

inline uint64_t mix(uint64_t x) {
  x = (x ^ x >> 32) * 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 29) * 0xc2b2ae3d27d4eb4fu;
  return x ^ x >> 32;
}

// Two sums in each lane of some registers: of the words, so that a single changed word always
// counts; and of the first sum so far and the product of a word's halves, rotated at every word, so
// that places count and that changes which cancel in one sum do not in the other.
struct HashLanes {
  using Words = Bits<double>;
  static constexpr int kVectors = 4, kWords = kVectors * kVectorBytes / 8;
  Words key[kVectors], sum[kVectors] = {}, places[kVectors] = {};

  HashLanes() {
    for (int i = 0; i < kWords; ++i)
      key[i / (kWords / kVectors)][i % (kWords / kVectors)] = mix(i + 1);
  }
  uint64_t lane(const Words* of, int i) const {
    return of[i / (kWords / kVectors)][i % (kWords / kVectors)];
  }
  // On a copy: the bytes at p might be the lanes themselves, for all that the compiler knows.
  void add(const char* p, size_t blocks) {
    HashLanes l = *this;
    for (; blocks > 0; --blocks, p += sizeof sum) {
#pragma GCC unroll 4
      for (int i = 0; i < kVectors; ++i) {
        Words w;
        __builtin_memcpy(&w, p + i * kVectorBytes, sizeof w);
        l.sum[i] += w;
        l.places[i] = (l.places[i] << 5 | l.places[i] >> 59) + l.sum[i] +
                      native_product_of_halves(w ^ l.key[i]);
      }
    }
    *this = l;
  }
};

inline Fingerprint hash_buffers(const void* const* pointers, const size_t* bytes, size_t count) {
  constexpr size_t kBlock = sizeof HashLanes::sum;
  HashLanes lanes;
  for (size_t b = 0; b < count; ++b) {
    const char* p = static_cast<const char*>(pointers[b]);
    lanes.add(p, bytes[b] / kBlock);
    char rest[kBlock] = {};
    const size_t left = bytes[b] % kBlock;
    if (left) __builtin_memcpy(rest, p + bytes[b] - left, left);
    lanes.add(rest, 1);
    lanes.sum[0] += mix(bytes[b] + b);  // where a buffer ends counts too
  }
  Fingerprint f{{1, 2}};
  for (int i = 0; i < HashLanes::kWords; ++i) {
    const uint64_t sum = lanes.lane(lanes.sum, i), places = lanes.lane(lanes.places, i);
    f.words[0] = mix(f.words[0] ^ sum) + places;
    f.words[1] = mix(f.words[1] ^ places) + sum;
  }
  return f;
}

}  // namespace fastrnn::FASTRNN_ISA
