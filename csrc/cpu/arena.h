// Lays buffers out in the caller's workspace. With a null base it only counts, so that the size
// asked for and the layout used come from the same code.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastrnn::FASTRNN_ISA {

class Arena {
 public:
  explicit Arena(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {
    if (base_) used_ = (kAlign - base_ % kAlign) % kAlign;
  }

  template <class T>
  T* take(int64_t count) {
    T* p = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (size_t(count) * sizeof(T) + kAlign - 1) / kAlign * kAlign;
    return p;
  }
  // Bytes to allocate, whatever the alignment of the base that is given later.
  size_t bytes() const { return used_ + kAlign; }

 private:
  static constexpr size_t kAlign = 64;
  uintptr_t base_;
  size_t used_ = 0;
};

}  // namespace fastrnn::FASTRNN_ISA
