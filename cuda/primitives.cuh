// Everything of CUDA that is not plain C++: indices, barriers, asynchronous copies, tensor-core
// products, conversions, launches. Nothing else in cuda/ has inline PTX or a launch, so that all of
// it runs under the emulator, whose header has the same functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "api.h"

// A test-only build plants one fault at a time, to show that the tests find it.
#ifdef FASTRNN_PLANT_FAULTS
#define FASTRNN_PLANTED(fault) (::emulator::planted == ::emulator::Fault::fault)
#else
#define FASTRNN_PLANTED(fault) false
#endif

#ifdef FASTRNN_EMULATED
#include "cuda_emulator/primitives.h"
#else
#include <cuda_runtime.h>

// Threads of a block and, where given, blocks on a multiprocessor, which bound the registers.
#define FASTRNN_KERNEL(...) __global__ void __launch_bounds__(__VA_ARGS__)
#define FASTRNN_DEVICE __device__ __forceinline__
#define FASTRNN_UNROLL _Pragma("unroll")
#define FASTRNN_ROLLED _Pragma("unroll 1")

namespace fastrnn::cuda {

FASTRNN_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
FASTRNN_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
FASTRNN_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
FASTRNN_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
FASTRNN_DEVICE unsigned char* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char memory[];
  return memory;
}
FASTRNN_DEVICE unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

FASTRNN_DEVICE void block_barrier() { __syncthreads(); }
FASTRNN_DEVICE void warp_barrier() { __syncwarp(); }
// Between two looks at a flag.
FASTRNN_DEVICE void spin_pause() { __nanosleep(20); }

FASTRNN_DEVICE unsigned load_acquire(const unsigned* p) {
  unsigned v;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
  return v;
}
FASTRNN_DEVICE void add_release(unsigned* p, unsigned n) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(n) : "memory");
}
FASTRNN_DEVICE unsigned long long load_acquire(const unsigned long long* p) {
  unsigned long long v;
  asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(p) : "memory");
  return v;
}
FASTRNN_DEVICE void add_release(unsigned long long* p, unsigned long long n) {
  asm volatile("red.release.gpu.global.add.u64 [%0], %1;" ::"l"(p), "l"(n) : "memory");
}

// 16 bytes from global to shared memory past the registers and L1; only the first `bytes` are read,
// the others become zero. Both addresses are multiples of 16.
FASTRNN_DEVICE void cp_async16(void* shared, const void* global, int bytes) {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
#else
  auto* to = static_cast<uint4*>(shared);
  if (bytes == 16) {
    *to = __ldcg(static_cast<const uint4*>(global));
    return;
  }
  *to = make_uint4(0, 0, 0, 0);
  for (int i = 0; i < bytes; ++i)
    static_cast<unsigned char*>(shared)[i] = __ldcg(static_cast<const unsigned char*>(global) + i);
#endif
}
FASTRNN_DEVICE void cp_async_commit() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until all but the latest kPending groups of this thread have arrived.
template <int kPending>
FASTRNN_DEVICE void cp_async_wait() {
#if __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

FASTRNN_DEVICE float shuffle_xor(float value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Four 8 x 8 matrices of 16-bit numbers; lane 8 i + r gives the address of row r of matrix i.
template <bool kTransposed>
FASTRNN_DEVICE void load_matrices(unsigned (&r)[4], const void* row) {
  if (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// sums += a b, of 16 x 16 and 16 x 8 (TF32: 16 x 8 and 8 x 8) numbers spread over the warp.
FASTRNN_DEVICE void multiply_bfloat16(float (&c)[4], const unsigned (&a)[4],
                                      const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}
FASTRNN_DEVICE void multiply_float16(float (&c)[4], const unsigned (&a)[4],
                                     const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  for (int half = 0; half < 2; ++half)
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, "
        "{%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
#endif
}
FASTRNN_DEVICE void multiply_tf32(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  __trap();
#endif
}

FASTRNN_DEVICE unsigned float_bits(float v) { return __float_as_uint(v); }
FASTRNN_DEVICE float bits_float(unsigned bits) { return __uint_as_float(bits); }
FASTRNN_DEVICE unsigned round_to_tf32(float v) {  // to nearest, ties away from zero
#if __CUDA_ARCH__ >= 800
  unsigned bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
  return bits;
#else
  return float_bits(v);
#endif
}
FASTRNN_DEVICE uint16_t round_to_bfloat16(float v) {
#if __CUDA_ARCH__ >= 800
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
#else
  return static_cast<uint16_t>(float_bits(v) >> 16);
#endif
}
FASTRNN_DEVICE uint16_t round_to_float16(float v) {
  uint16_t bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(v));
  return bits;
}
FASTRNN_DEVICE float widen_float16(uint16_t bits) {
  float v;
  asm("cvt.f32.f16 %0, %1;" : "=f"(v) : "h"(bits));
  return v;
}

// Adds kernel(params) to the stream; returns CUDA's error code.
template <class Params>
int launch(void (*kernel)(Params), int grid_x, int grid_y, int grid_z, int threads,
           int64_t shared_bytes, bool cooperative, void* stream, const Params& params) {
  const auto shared = static_cast<int>(shared_bytes);
  auto* function = reinterpret_cast<const void*>(kernel);
  cudaError_t error =
      cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = cooperative;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y),
                        static_cast<unsigned>(grid_z));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &attribute;
  config.numAttrs = 1;
  void* arguments[] = {const_cast<Params*>(&params)};
  return cudaLaunchKernelExC(&config, function, arguments);
}
inline int clear(void* memory, size_t bytes, void* stream) {
  return cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(stream));
}
inline int copy(void* to, const void* from, size_t bytes, void* stream) {
  return cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice,
                         static_cast<cudaStream_t>(stream));
}
inline int query_versions(Versions& versions) {
  const cudaError_t error = cudaDriverGetVersion(&versions.driver);
  return error == cudaSuccess ? cudaRuntimeGetVersion(&versions.own) : error;
}
// All of a device but what is assumed.
inline int query_device(Device& device) {
  int number = 0;
  cudaDeviceProp p;
  cudaError_t error = cudaGetDevice(&number);
  if (error == cudaSuccess) error = cudaGetDeviceProperties(&p, number);
  if (error != cudaSuccess) return error;
  int clock_khz = 0, memory_khz = 0;
  cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, number);
  cudaDeviceGetAttribute(&memory_khz, cudaDevAttrMemoryClockRate, number);
  device.major = p.major, device.minor = p.minor;
  device.multiprocessors = p.multiProcessorCount;
  device.shared_per_block = static_cast<int64_t>(p.sharedMemPerBlockOptin);
  device.shared_per_multiprocessor = static_cast<int64_t>(p.sharedMemPerMultiprocessor);
  device.registers_per_multiprocessor = p.regsPerMultiprocessor;
  device.threads_per_multiprocessor = p.maxThreadsPerMultiProcessor;
  device.clock_ghz = clock_khz * 1e-6;
  device.memory_gb_per_s = 2.0 * memory_khz * (p.memoryBusWidth / 8) * 1e-6;
  return cudaSuccess;
}
inline const char* error_text(int code) {
  return cudaGetErrorString(static_cast<cudaError_t>(code));
}

}  // namespace fastrnn::cuda
#endif
