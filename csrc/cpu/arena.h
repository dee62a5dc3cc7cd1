// Lays buffers out in the caller's workspace. With a null base it only counts, so that the size
// asked for and the layout used come from the same code.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>

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

// Objects that are made one by one, in memory that nobody touches before: to clear that of all that
// a call might have takes longer than a small call, and leaves nothing else in L1.
template <class T, int kMost>
class UpTo {
 public:
  T& add() { return *::new (memory_ + sizeof(T) * size_t(count_++)) T; }
  int count() const { return count_; }
  T& operator[](int64_t i) {
    return *std::launder(reinterpret_cast<T*>(memory_ + sizeof(T) * size_t(i)));
  }
  const T& operator[](int64_t i) const {
    return *std::launder(reinterpret_cast<const T*>(memory_ + sizeof(T) * size_t(i)));
  }

 private:
  static_assert(std::is_trivially_destructible_v<T>, "nothing is destroyed");
  alignas(T) unsigned char memory_[sizeof(T) * kMost];
  int count_ = 0;
};

}  // namespace fastrnn::FASTRNN_ISA
