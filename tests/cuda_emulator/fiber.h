// A stack and a place to go on: what the emulator makes a CUDA thread of.
#pragma once

#include <sys/mman.h>
#include <unistd.h>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#include <cstdint>
#include <cstdlib>

#if defined(FASTRNN_EMULATOR_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
}
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {

// Happens-before, as ThreadSanitizer counts it; nothing without it.
inline void acquire([[maybe_unused]] void* address) {
#if defined(FASTRNN_EMULATOR_TSAN)
  __tsan_acquire(address);
#endif
}
inline void release([[maybe_unused]] void* address) {
#if defined(FASTRNN_EMULATOR_TSAN)
  __tsan_release(address);
#endif
}

class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber();

  // The thread that calls it.
  void adopt() {
#if defined(FASTRNN_EMULATOR_TSAN)
    tsan_ = __tsan_get_current_fiber();
#endif
    own_ = false;
  }
  // `entry` never returns.
  void prepare(void (*entry)());
  // Goes on with `to`; returns when somebody switches back to `this`.
  void switch_to(Fiber& to);
  // To be called first by a fiber that has just been entered.
  void entered();

 private:
  static constexpr size_t kStack = 256 << 10, kGuard = 4096;

  void end_sanitizer() {
#if defined(FASTRNN_EMULATOR_TSAN)
    if (tsan_ && own_) __tsan_destroy_fiber(tsan_);
    tsan_ = nullptr;
#endif
  }

  unsigned char* memory_ = nullptr;
  bool own_ = true;
#if defined(__x86_64__)
  void* stack_ = nullptr;
#else
  ucontext_t context_;
#endif
#if defined(FASTRNN_EMULATOR_TSAN)
  void* tsan_ = nullptr;
#endif
#if defined(__SANITIZE_ADDRESS__)
  static inline Fiber* last_from = nullptr;
  void* fake_stack_ = nullptr;
  const void* bottom_ = nullptr;
  size_t size_ = 0;
#endif
};

}  // namespace emulator
