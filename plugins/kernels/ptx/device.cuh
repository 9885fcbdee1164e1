// SPDX-License-Identifier: Apache-2.0
//
// Device primitives as PTX instructions. emulator/device.cuh has the same names for the CPU; the
// include path decides which of the two a kernel source gets.
//
// All of it exists from SM 80 on, and nothing needs one architecture's own features, so one PTX
// serves every SM.

#ifndef TC_DEVICE_CUH
#define TC_DEVICE_CUH

#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "tc_kernels.h"
#include "types.cuh"

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#error "the kernels need SM 80 or later: cp.async and the 16-bit mma.m16n8k16"
#endif

namespace tc {

constexpr int kWarpSize = 32;

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(Half value) {
  float result;
  asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value.bits));
  return result;
}
__device__ __forceinline__ float to_float(BFloat16 value) {
  return __uint_as_float(static_cast<std::uint32_t>(value.bits) << 16);
}

// Round to nearest, ties to even.
template <class T>
__device__ __forceinline__ T from_float(float value) {
  T result;
  if constexpr (std::is_same_v<T, float>) {
    result = value;
  } else if constexpr (std::is_same_v<T, Half>) {
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  } else {
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(result.bits) : "f"(value));
  }
  return result;
}

template <class T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  std::uint32_t result;
  if constexpr (std::is_same_v<T, Half>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(high), "f"(low));
  }
  return result;
}

__device__ __forceinline__ float exp2_approx(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Each operation rounded by itself, as PyTorch does: never contracted to one fused operation.
__device__ __forceinline__ float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float add_rounded(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float divide_rounded(float a, float b) { return __fdiv_rn(a, b); }

// Ties go to even. What is too large for an int becomes the largest, and a NaN 0.
__device__ __forceinline__ int nearest_integer(float x) { return __float2int_rn(x); }

__device__ __forceinline__ std::uint32_t float_bits(float x) { return __float_as_uint(x); }
__device__ __forceinline__ float bits_float(std::uint32_t bits) { return __uint_as_float(bits); }

__device__ __forceinline__ unsigned char* dynamic_shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

template <class V>
__device__ __forceinline__ V load_global(const V* address) {
  return *address;
}
template <class V>
__device__ __forceinline__ void store_global(V* address, V value) {
  *address = value;
}
template <class V>
__device__ __forceinline__ V load_shared(const V* address) {
  return *address;
}
template <class V>
__device__ __forceinline__ void store_shared(V* address, V value) {
  *address = value;
}

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// Copies 16 bytes to shared memory, or fills them with zeros without reading when not `valid`.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}
// The same of 4 bytes.
__device__ __forceinline__ void copy_async_4(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int GroupsLeft>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GroupsLeft) : "memory");
}

template <class V>
__device__ __forceinline__ V shuffle_xor(V value, int lane_mask) {
  return __shfl_xor_sync(0xffffffffu, value, lane_mask);
}

__device__ __forceinline__ void load_matrix_x4(std::uint32_t (&registers)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void load_matrix_x4_transposed(std::uint32_t (&registers)[4],
                                                          const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
}

// c[16, 8] += a[16, 16] b[16, 8] over a warp.
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
  if constexpr (std::is_same_v<T, Half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}

// Enqueue a kernel. More than 48 KB of shared memory has to be asked for; the attribute is a
// property of the kernel on the current device, so it is set each time.
template <class Params>
tc_status launch(void (*kernel)(Params), std::int64_t blocks, int threads, int shared_bytes,
                 void* stream, const Params& params) {
  const auto* function = reinterpret_cast<const void*>(kernel);
  const auto attribute = cudaFuncAttributeMaxDynamicSharedMemorySize;
  if (shared_bytes > 48 * 1024 &&
      cudaFuncSetAttribute(function, attribute, shared_bytes) != cudaSuccess) {
    return TC_LAUNCH_FAILED;
  }
  void* arguments[] = {const_cast<Params*>(&params)};
  const cudaError_t error =
      cudaLaunchKernel(function, dim3(static_cast<unsigned>(blocks)), dim3(threads), arguments,
                       shared_bytes, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? TC_OK : TC_LAUNCH_FAILED;
}

inline tc_status copy_on_device(void* to, const void* from, std::size_t bytes, void* stream) {
  const cudaError_t error =
      cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream));
  return error == cudaSuccess ? TC_OK : TC_LAUNCH_FAILED;
}

}  // namespace tc

#endif  // TC_DEVICE_CUH
