#include "isa.h"

#include <fastrnn/fastrnn.h>

#include <atomic>
#include <cstdlib>

#include "../check.h"
#include "kernels.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fastrnn {
namespace {

#if defined(__x86_64__)
// The registers that the operating system saves on a context switch (XCR0). A processor may have
// AVX-512 while the system, or a virtual machine, does not keep its registers.
uint64_t saved_registers() {
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return 0;
  unsigned low = 0, high = 0;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t(high) << 32 | low;
}

bool has_avx2() {
  constexpr uint64_t kYmm = 0x6;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if ((saved_registers() & kYmm) != kYmm) return false;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_FMA) || !(c & bit_F16C)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_AVX2);
}

bool has_avx512() {
  constexpr uint64_t kZmm = 0xe6;
  constexpr unsigned kNeeded = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx2() || (saved_registers() & kZmm) != kZmm) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & kNeeded) == kNeeded;
}

bool has_avx512_bf16() {
  constexpr unsigned kVnni = 1u << 11, kBf16 = 1u << 5;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(c & kVnni)) return false;
  return __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kBf16);
}

// Linux gives a process the tile registers when it asks for them.
// Builds may leave instruction sets out.
[[maybe_unused]] bool has_amx() {
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24, kInt8 = 1u << 25;
  constexpr unsigned kNeeded = kBf16 | kTile | kInt8;
  constexpr uint64_t kTiles = 0x60000;
  unsigned a = 0, b = 0, c = 0, d = 0;
  if (!has_avx512_bf16() || (saved_registers() & kTiles) != kTiles) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kNeeded) != kNeeded) return false;
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

std::vector<IsaEntry> make_list() {
  std::vector<IsaEntry> list;
#if defined(FASTRNN_HAVE_BASELINE)
  list.push_back({"baseline", true, baseline::kernels});
#endif
#if defined(FASTRNN_HAVE_NEON)
  list.push_back({"neon", true, neon::kernels});
#endif
#if defined(FASTRNN_HAVE_AVX2)
  list.push_back({"avx2", has_avx2(), avx2::kernels});
#endif
#if defined(FASTRNN_HAVE_AVX512)
  list.push_back({"avx512", has_avx512(), avx512::kernels});
#endif
#if defined(FASTRNN_HAVE_AVX512_BF16)
  list.push_back({"avx512_bf16", has_avx512_bf16(), avx512_bf16::kernels});
#endif
#if defined(FASTRNN_HAVE_AMX)
  list.push_back({"amx", has_amx(), amx::kernels});
#endif
  return list;
}

const IsaEntry& find(const std::string& name, const char* source) {
  std::string names;
  for (const IsaEntry& entry : isa_list()) {
    if (!entry.supported) continue;
    if (entry.name == name) return entry;
    names += names.empty() ? entry.name : std::string(", ") + entry.name;
  }
  FASTRNN_CHECK(false, source << " must be one of " << names << " on this machine, got " << name);
  return isa_list().front();
}

const IsaEntry& choose() {
  const char* name = std::getenv("FASTRNN_ISA");
  if (name && *name) return find(name, "FASTRNN_ISA");
  const IsaEntry* best = nullptr;
  for (const IsaEntry& entry : isa_list())
    if (entry.supported) best = &entry;
  return *best;
}

std::atomic<const IsaEntry*> in_use{nullptr};

}  // namespace

const std::vector<IsaEntry>& isa_list() {
  static const std::vector<IsaEntry> list = make_list();
  return list;
}

const IsaEntry& current_isa() {
  const IsaEntry* entry = in_use.load(std::memory_order_acquire);
  if (!entry) in_use.store(entry = &choose(), std::memory_order_release);
  return *entry;
}

const char* isa() { return current_isa().name; }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const IsaEntry& entry : isa_list())
    if (entry.supported) names.emplace_back(entry.name);
  return names;
}

void set_isa(const std::string& name) {
  in_use.store(&find(name, "isa"), std::memory_order_release);
}

}  // namespace fastrnn
