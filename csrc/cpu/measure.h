// What benchmarks compare with, and the hash that recognises unchanged weights.
#pragma once

#include <fastrnn/fastrnn.h>

#include <chrono>

#include "../simd/vec.h"

namespace fastrnn::FASTRNN_ISA {

inline double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// GFLOP/s of independent multiply-adds in registers: the best of many short runs.
template <class T>
double fma_peak_of(double seconds) {
  using V = Vec<T>;
  constexpr int kChains = kRegisters == 32 ? 24 : 12, kRepeats = 20000;
  V sum[kChains];  // in registers: every loop over it is unrolled
#pragma GCC unroll 24
  for (int i = 0; i < kChains; ++i) sum[i] = V(T(i));
  V factor = V(T(0.999)), addend = V(T(0.001));
  double best = 0;
  const auto start = std::chrono::steady_clock::now();
  while (seconds_since(start) < seconds) {
    const auto run = std::chrono::steady_clock::now();
    for (int n = 0; n < kRepeats; ++n) {
#pragma GCC unroll 24
      for (int i = 0; i < kChains; ++i) sum[i] = fma(sum[i], factor, addend);
    }
    const double flops = 2.0 * kRepeats * kChains * V::kWidth / seconds_since(run) / 1e9;
    if (flops > best) best = flops;
  }
  T sink[V::kWidth];
#pragma GCC unroll 24
  for (int i = 1; i < kChains; ++i) sum[0] = sum[0] + sum[i];
  sum[0].store(sink);
  asm volatile("" ::"r"(sink) : "memory");
  return best;
}

inline double measure_fma_peak(Dtype dtype, double seconds) {
  return dtype == Dtype::kFloat64 ? fma_peak_of<double>(seconds) : fma_peak_of<float>(seconds);
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

// Lanes of multiply-xor hashing, which compilers vectorise. A lane's step is a bijection of its
// state for each word, so a single changed word always changes the hash.
inline Fingerprint hash_buffers(const void* const* pointers, const size_t* bytes, size_t count) {
  constexpr int kLanes = 32;
  constexpr uint64_t kFactor = 0x9e3779b97f4a7c15u, kOther = 0xc2b2ae3d27d4eb4fu;
  uint64_t lane[kLanes];
  for (int i = 0; i < kLanes; ++i) lane[i] = kOther * uint64_t(i + 1);
  for (size_t b = 0; b < count; ++b) {
    const char* p = static_cast<const char*>(pointers[b]);
    size_t left = bytes[b];
    uint64_t words[kLanes];
    for (; left >= sizeof words; left -= sizeof words, p += sizeof words) {
      __builtin_memcpy(words, p, sizeof words);
      for (int i = 0; i < kLanes; ++i) {
        lane[i] = (lane[i] ^ words[i]) * kFactor;
        lane[i] ^= lane[i] >> 32;
      }
    }
    __builtin_memset(words, 0, sizeof words);
    if (left) __builtin_memcpy(words, p, left);
    words[kLanes - 1] ^= uint64_t(bytes[b]) * kOther;
    for (int i = 0; i < kLanes; ++i) {
      lane[i] = (lane[i] ^ words[i]) * kFactor;
      lane[i] ^= lane[i] >> 29;
    }
  }
  Fingerprint f{{kFactor, kOther}};
  for (int i = 0; i < kLanes; ++i)
    for (uint64_t& w : f.words) {
      w = (w ^ lane[i]) * (kFactor ^ uint64_t(&w - f.words) * 2);
      w ^= w >> 32;
    }
  return f;
}

}  // namespace fastrnn::FASTRNN_ISA
