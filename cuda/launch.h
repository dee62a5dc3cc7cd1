// The table of launch functions, one for each cell and format, and how the workspace is divided.
#pragma once

#include "api.h"

namespace fastrnn::cuda {

struct Functions {
  void (*forward)(const Problem&, const Plan&, const ForwardBuffers&, Stream);
  void (*backward)(const Problem&, const Plan&, const BackwardBuffers&, Stream);
  void (*stream)(const Problem&, const Plan&, const StreamBuffers&, Stream);
  size_t (*workspace)(const Problem&, const Plan&);
  // Shared memory of a block of a plan, the part of it that weights take, and weights in registers.
  int64_t (*shared_bytes)(const Problem&, const Plan&);
  int64_t (*weight_bytes)(const Problem&, const Plan&);
  int64_t (*register_bytes)(const Problem&, const Plan&);
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

// Bytes of a stored number, and of one that the maths is done in.
inline int64_t storage_bytes(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}
inline int64_t value_bytes(Dtype dtype) { return dtype == Dtype::kFloat64 ? 8 : 4; }

// The parts of a stream's state.
struct StreamState {
  StreamState(const Problem& p, int layers, void* base) {
    Pieces pieces(base);
    const int64_t O = p.P ? p.P : p.H;
    h_bytes = layers * p.B * O * storage_bytes(p.dtype);
    c_bytes = layout(p.cell).states > 1 ? layers * p.B * p.H * value_bytes(p.dtype) : 0;
    arrivals = pieces.take<unsigned long long>(1);
    h = pieces.take<unsigned char>(2 * h_bytes);
    c = pieces.take<unsigned char>(c_bytes);
    full = pieces.take<unsigned char>(p.P ? p.B * p.H * storage_bytes(p.dtype) : 0);
    bytes = pieces.used();
  }
  unsigned long long* arrivals;  // of blocks, in all steps; see stream.cuh
  void* h;                       // [2,L,B,O]
  void* c;                       // [L,B,H]
  void* full;                    // [B,H]
  int64_t h_bytes, c_bytes;      // of one h, and of c
  size_t bytes;
};
// Arrivals of blocks in one step.
inline unsigned long long stream_arrivals(const Problem& p, const Plan& plan) {
  return static_cast<unsigned long long>(plan.blocks) * plan.layers * (p.P ? 2 : 1);
}

inline int64_t quotient_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace fastrnn::cuda
