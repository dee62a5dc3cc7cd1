// What the test programs share: counted expectations, deterministic random numbers, and buffers
// between guard zones.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(address, size) ((void)(address), (void)(size))
#endif

namespace test {

inline int64_t checked = 0, failed = 0;

inline void record(bool ok, const char* file, int line, const std::string& text) {
  ++checked;
  if (ok) return;
  constexpr int64_t kShown = 30;
  if (++failed <= kShown) std::printf("FAILED %s:%d: %s\n", file, line, text.c_str());
}

// The message is only put together on failure.
#define EXPECT(condition, message)                                    \
  do {                                                                \
    const bool expect_ok = static_cast<bool>(condition);              \
    std::ostringstream expect_text;                                   \
    if (!expect_ok) expect_text << #condition << ": " << message;     \
    ::test::record(expect_ok, __FILE__, __LINE__, expect_text.str()); \
  } while (false)

inline int finish(const char* name) {
  std::printf("%s: %lld checks, %lld failed\n", name, static_cast<long long>(checked),
              static_cast<long long>(failed));
  return failed ? 1 : 0;
}

// FASTRNN_TEST_QUICK thins out the longest loops, for emulators and sanitizers.
inline bool quick() { return std::getenv("FASTRNN_TEST_QUICK") != nullptr; }

// A linear congruential generator: the same numbers everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 1) { bits(), bits(); }

  uint32_t bits() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits()) % n; }
  bool coin() { return bits() >> 31; }
  // In (-1, 1), exact in float.
  double value() { return (static_cast<int32_t>(bits()) >> 8) / 8388608.0 + 1.0 / 16777216.0; }
  template <class C>
  auto pick(const C& from) {
    return from[static_cast<size_t>(below(static_cast<int64_t>(from.size())))];
  }

 private:
  uint64_t state_;
};

template <class T>
struct Pattern;  // of untouched memory: NaN that no arithmetic makes
template <>
struct Pattern<float> {
  static constexpr uint32_t bits = 0xffe5e5e5u;
};
template <>
struct Pattern<double> {
  static constexpr uint64_t bits = 0xfffce5e5e5e5e5e5u;
};
template <>
struct Pattern<unsigned char> {
  static constexpr unsigned char bits = 0xe5;
};

// `count` elements, all of the pattern, between guard zones of the same. Every second buffer ends
// where the process's memory ends, so that reading past it crashes; the others end in a guard zone
// that shows what was written. Their addresses are whole elements past a multiple of 64, or any.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : bytes_(static_cast<size_t>(count) * sizeof(T)) {
    static std::atomic<unsigned> made{0};
    const unsigned number = ++made;
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    behind_ = number % 2 ? 0 : kGuard + number / 2 % 7 * sizeof(T);
    size_ = (kGuard + bytes_ + behind_ + page - 1) / page * page;
    void* memory =
        mmap(nullptr, size_ + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + size_, page, PROT_NONE))
      std::abort();
    memory_ = static_cast<unsigned char*>(memory);
    start_ = memory_ + size_ - behind_ - bytes_;
    mapped_ = size_ + page;
    const auto bits = Pattern<T>::bits;
    for (unsigned char* at = start_ - kGuard; at < memory_ + size_; at += sizeof bits)
      std::memcpy(at, &bits, sizeof bits);
    ASAN_POISON_MEMORY_REGION(memory_, static_cast<size_t>(start_ - memory_));
    ASAN_POISON_MEMORY_REGION(start_ + bytes_, behind_);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() {
    ASAN_UNPOISON_MEMORY_REGION(memory_, size_);
    munmap(memory_, mapped_);
  }

  T* data() { return reinterpret_cast<T*>(start_); }
  int64_t count() const { return static_cast<int64_t>(bytes_ / sizeof(T)); }

  // An element that has not been written.
  bool untouched(int64_t i) const {
    const auto bits = Pattern<T>::bits;
    return !std::memcmp(start_ + i * static_cast<int64_t>(sizeof(T)), &bits, sizeof bits);
  }
  bool guards_intact() {
    ASAN_UNPOISON_MEMORY_REGION(memory_, size_);
    const auto before = static_cast<int64_t>(kGuard / sizeof(T));
    const auto after = static_cast<int64_t>(behind_ / sizeof(T));
    bool intact = true;
    for (int64_t i = -before; i < 0; ++i) intact = intact && untouched(i);
    for (int64_t i = count(); i < count() + after; ++i) intact = intact && untouched(i);
    return intact;
  }

 private:
  static constexpr size_t kGuard = 512;
  size_t bytes_, behind_ = 0, size_ = 0, mapped_ = 0;
  unsigned char *memory_ = nullptr, *start_ = nullptr;
};

}  // namespace test
