// The table of launch functions, one for each cell and format, and how the workspace is divided.
#pragma once

#include "api.h"

namespace fastrnn::cuda {

struct Functions {
  void (*forward)(const Problem&, const Plan&, const ForwardBuffers&, Stream);
  void (*backward)(const Problem&, const Plan&, const BackwardBuffers&, Stream);
  size_t (*workspace)(const Problem&, const Plan&);
  // Shared memory of a block of a plan, and the part of it that weights take.
  int64_t (*shared_bytes)(const Problem&, const Plan&);
  int64_t (*weight_bytes)(const Problem&, const Plan&);
};

// Numbers of a format, by index.
enum Format { kFormatFloat32, kFormatTf32, kFormatFloat64, kFormatBfloat16, kFormatFloat16 };
const Functions& functions(Cell cell, Format format);
inline Format format_of(Dtype dtype, bool tf32) {
  switch (dtype) {
    case Dtype::kFloat64:
      return kFormatFloat64;
    case Dtype::kBfloat16:
      return kFormatBfloat16;
    case Dtype::kFloat16:
      return kFormatFloat16;
    default:
      return tf32 ? kFormatTf32 : kFormatFloat32;
  }
}

// Defined by kernels.cu, compiled once for each format.
const Functions& float32_functions(Cell cell);
const Functions& tf32_functions(Cell cell);
const Functions& float64_functions(Cell cell);
const Functions& bfloat16_functions(Cell cell);
const Functions& float16_functions(Cell cell);

// Throws std::runtime_error unless `code`, CUDA's, is success.
void check_launch(int code, const char* kernel);

// Assumed: 24 bytes in a clock for each multiprocessor, as H100 and A100 have it.
inline double l2_gb_per_s(const Device& device) {
  return 24.0 * device.multiprocessors * device.clock_ghz;
}

// Pieces of a buffer, one after the other, each aligned. Without a base it only counts.
class Pieces {
 public:
  explicit Pieces(void* base) : base_(static_cast<unsigned char*>(base)) {}
  template <class T>
  T* take(int64_t count) {
    constexpr size_t kAlignment = 256;
    const size_t at = used_;
    used_ += (static_cast<size_t>(count) * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return base_ && count ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  size_t used() const { return used_; }

 private:
  unsigned char* base_;
  size_t used_ = 0;
};

inline int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastrnn::cuda
