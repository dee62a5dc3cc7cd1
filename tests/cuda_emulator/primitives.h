// The emulated twin of cuda/primitives.cuh: the same functions, run by fibers. What reads or writes
// memory for the kernel is inline, so that the sanitizers see it as the kernel's.
#pragma once

#include <cstdint>
#include <cstring>

#include "emulator.h"

#define FASTRNN_KERNEL(...) inline void
#define FASTRNN_DEVICE inline
#define FASTRNN_UNROLL
#define FASTRNN_ROLLED

namespace fastrnn::cuda {

FASTRNN_DEVICE int thread_index() { return emulator::thread_index(); }
FASTRNN_DEVICE int block_x() { return emulator::block_index().x; }
FASTRNN_DEVICE int block_y() { return emulator::block_index().y; }
FASTRNN_DEVICE int block_z() { return emulator::block_index().z; }
FASTRNN_DEVICE unsigned char* dynamic_shared() { return emulator::dynamic_shared(); }

inline void block_barrier(emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  emulator::block_barrier(site);
}
inline void warp_barrier(emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  emulator::warp_barrier(site);
}
inline void spin_pause(emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  emulator::spin(site);
}

template <class Count>  // unsigned, unsigned long long
inline Count load_acquire(const Count* p) {
  return __atomic_load_n(p, __ATOMIC_ACQUIRE);
}
template <class Count>
inline void add_release(Count* p, Count n) {
  __atomic_fetch_add(p, n, FASTRNN_PLANTED(kNoRelease) ? __ATOMIC_RELAXED : __ATOMIC_RELEASE);
  emulator::progress();
}
// The destination holds NaN from the issue to the wait.
inline void cp_async16(void* shared, const void* global, int bytes,
                       emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  if (reinterpret_cast<uintptr_t>(shared) % 16 || reinterpret_cast<uintptr_t>(global) % 16)
    emulator::fail("cp.async of an address that is no multiple of 16", site);
  emulator::Copy copy = {shared, {0, 0, 0, 0}, 0};
  auto* to = static_cast<unsigned char*>(static_cast<void*>(copy.words));
  for (int i = 0; i < bytes; ++i) to[i] = static_cast<const unsigned char*>(global)[i];
  for (int i = 0; i < 4; ++i) static_cast<unsigned*>(shared)[i] = 0xffffffffu;
  emulator::cp_async_record(copy, site);
}
FASTRNN_DEVICE void cp_async_commit() { emulator::cp_async_commit(); }
template <int kPending>
inline void cp_async_wait() {
  while (const emulator::Copy* copy = emulator::cp_async_complete(kPending))
    for (int i = 0; i < 4; ++i) static_cast<unsigned*>(copy->to)[i] = copy->words[i];
}

inline float shuffle_xor(float value, int mask,
                         emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  emulator::Shuffle payload = {value, mask, 0};
  emulator::rendezvous(emulator::shuffle_xor, &payload, site);
  return payload.result;
}

template <bool kTransposed>
inline void load_matrices(unsigned (&registers)[4], const void* row,
                          emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  if (reinterpret_cast<uintptr_t>(row) % 16)
    emulator::fail("ldmatrix of an address that is no multiple of 16", site);
  emulator::Matrices payload = {{}, registers};
  for (int i = 0; i < 4; ++i) payload.row[i] = static_cast<const unsigned*>(row)[i];
  emulator::rendezvous(kTransposed ? emulator::load_matrices_transposed : emulator::load_matrices,
                       &payload, site);
}

inline void multiply_bfloat16(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                              emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  emulator::Product payload = {sums, a, b};
  emulator::rendezvous(emulator::multiply_bfloat16, &payload, site);
}
inline void multiply_float16(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                             emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  emulator::Product payload = {sums, a, b};
  emulator::rendezvous(emulator::multiply_float16, &payload, site);
}
inline void multiply_tf32(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                          emulator::Site site = {__builtin_FILE(), __builtin_LINE()}) {
  emulator::Product payload = {sums, a, b};
  emulator::rendezvous(emulator::multiply_tf32, &payload, site);
}

FASTRNN_DEVICE unsigned float_bits(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}
FASTRNN_DEVICE float bits_float(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}
FASTRNN_DEVICE unsigned round_to_tf32(float v) {  // to nearest, ties away from zero
  const unsigned bits = float_bits(v);
  return v - v == 0 ? (bits + 0x1000u) & ~0x1fffu : bits;
}
FASTRNN_DEVICE uint16_t round_to_bfloat16(float v) {
  const unsigned bits = float_bits(v);
  if (v != v) return 0x7fff;
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}
FASTRNN_DEVICE uint16_t round_to_float16(float v) {
  const auto half = static_cast<_Float16>(v);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}
FASTRNN_DEVICE float widen_float16(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, sizeof half);
  return static_cast<float>(half);
}

template <class Params>
int launch(void (*kernel)(Params), int grid_x, int grid_y, int grid_z, int threads,
           int64_t shared_bytes, bool cooperative, void*, const Params& params) {
  return emulator::launch([&] { kernel(params); }, {grid_x, grid_y, grid_z}, threads, shared_bytes,
                          cooperative);
}
inline int clear(void* memory, size_t bytes, void*) {
  std::memset(memory, 0, bytes);
  return 0;
}
inline int copy(void* to, const void* from, size_t bytes, void*) {
  std::memcpy(to, from, bytes);
  return 0;
}
inline int query_versions(Versions& versions) {
  versions.driver = versions.own = 13000;
  return 0;
}
inline int query_device(Device& device) {
  const emulator::Settings& s = emulator::settings;
  device.major = 9, device.minor = 0, device.multiprocessors = s.multiprocessors;
  device.shared_per_block = s.shared_per_block;
  device.shared_per_multiprocessor = s.shared_per_multiprocessor;
  device.threads_per_multiprocessor = s.threads_per_multiprocessor;
  device.clock_ghz = 1;
  return 0;
}
inline const char* error_text(int code) {
  return code == emulator::kCooperativeLaunchTooLarge ? "too many blocks in a cooperative launch"
                                                      : "invalid argument";
}

}  // namespace fastrnn::cuda
