// SPDX-License-Identifier: Apache-2.0
//
// The device primitives of kernels/ptx/device.cuh, by the semantics that the PTX ISA gives them,
// on the emulator. The include path decides which of the two a kernel source gets.

#ifndef TC_DEVICE_CUH
#define TC_DEVICE_CUH

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

#include "block.h"
#include "tc_kernels.h"
#include "types.cuh"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define threadIdx (::emulator::current_block().thread->index)
#define blockIdx (::emulator::current_block().index)
#define blockDim (::emulator::current_block().size)
#define gridDim (::emulator::current_block().grid)
#define TC_EMULATOR_TEXT(x) #x
#define TC_EMULATOR_LINE(x) TC_EMULATOR_TEXT(x)
#define __syncthreads() ::emulator::current_block().barrier(__FILE__ ":" TC_EMULATOR_LINE(__LINE__))

namespace tc {

using emulator::kWarpSize;
using std::max;
using std::min;

// The compiler's own type, for its conversions. In C++, GCC has _Float16 on aarch64 from 13 on.
#if defined(__aarch64__)
using CompilerHalf = __fp16;
#else
using CompilerHalf = _Float16;
#endif

inline float to_float(float value) { return value; }
inline float to_float(Half value) {
  CompilerHalf half;
  std::memcpy(&half, &value.bits, sizeof half);
  return static_cast<float>(half);
}
inline float to_float(BFloat16 value) {
  const std::uint32_t bits = std::uint32_t{value.bits} << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

// Round to nearest, ties to even.
template <class T>
inline T from_float(float value) {
  T result;
  if constexpr (std::is_same_v<T, float>) {
    result = value;
  } else if constexpr (std::is_same_v<T, Half>) {
    const auto half = static_cast<CompilerHalf>(value);
    std::memcpy(&result.bits, &half, sizeof half);
  } else {
    std::uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    result.bits = is_nan ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  }
  return result;
}

template <class T>
inline std::uint32_t pack(float low, float high) {
  return from_float<T>(low).bits | static_cast<std::uint32_t>(from_float<T>(high).bits) << 16;
}

inline float exp2_approx(float x) { return std::exp2(x); }
// Each operation rounded by itself, as PyTorch does (the build switches contraction off).
inline float multiply_rounded(float a, float b) { return a * b; }
inline float add_rounded(float a, float b) { return a + b; }
inline float divide_rounded(float a, float b) { return a / b; }

// Ties go to even, which is the mode that a process starts in.
inline int nearest_integer(float x) {
  if (std::isnan(x)) return 0;
  using Int = std::numeric_limits<int>;
  return static_cast<int>(std::clamp<double>(std::nearbyint(x), Int::min(), Int::max()));
}

inline std::uint32_t float_bits(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline float bits_float(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline unsigned char* dynamic_shared_memory() { return emulator::current_block().shared; }

template <class V>
inline V load_global(const V* address) {
  emulator::check_global(address, sizeof(V), false);
  return *address;
}
template <class V>
inline void store_global(V* address, V value) {
  emulator::check_global(address, sizeof(V), true);
  *address = value;
}
template <class V>
inline V load_shared(const V* address) {
  emulator::current_block().read_shared(address, sizeof(V));
  return *address;
}
template <class V>
inline void store_shared(V* address, V value) {
  emulator::current_block().write_shared(address, sizeof(V));
  *address = value;
}

inline void copy_async_16(void* shared, const void* global, bool valid) {
  emulator::current_block().begin_copy(shared, global, 16, !valid);
}
inline void copy_async_4(void* shared, const void* global, bool valid) {
  emulator::current_block().begin_copy(shared, global, 4, !valid);
}
inline void commit_copies() { emulator::current_block().thread->open_group++; }
template <int GroupsLeft>
inline void wait_copies() {
  emulator::current_block().wait_copies(GroupsLeft);
}

template <class V>
inline V shuffle_xor(V value, int lane_mask) {
  struct Argument {
    V value, result;
    int lane_mask;
  } mine{value, value, lane_mask};
  emulator::current_block().collective("shfl.bfly", &mine, [](void** lanes) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      auto& to = *static_cast<Argument*>(lanes[lane]);
      to.result = static_cast<const Argument*>(lanes[lane ^ to.lane_mask])->value;
    }
  });
  return mine.result;
}

// ldmatrix: lane 8 m + r gives the address of row r of matrix m. Lane l gets, of each matrix, the
// elements (l / 4, 2 (l % 4)) and the next; transposed, the same of the transposed matrix.
struct MatrixArgument {
  std::uint32_t* registers;
  const std::uint16_t* row;
};

template <bool Transposed>
inline void load_matrices(std::uint32_t (&registers)[4], const void* row) {
  emulator::current_block().read_shared(row, 16);
  MatrixArgument mine{registers, static_cast<const std::uint16_t*>(row)};
  auto complete = [](void** lanes) {
    auto element = [&](int matrix, int i, int j) -> std::uint32_t {
      return static_cast<const MatrixArgument*>(lanes[8 * matrix + i])->row[j];
    };
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const int i = lane / 4, j = 2 * (lane % 4);
      for (int matrix = 0; matrix < 4; ++matrix) {
        const auto low = Transposed ? element(matrix, j, i) : element(matrix, i, j);
        const auto high = Transposed ? element(matrix, j + 1, i) : element(matrix, i, j + 1);
        static_cast<MatrixArgument*>(lanes[lane])->registers[matrix] = low | high << 16;
      }
    }
  };
  emulator::current_block().collective(Transposed ? "ldmatrix.trans" : "ldmatrix", &mine, complete);
}
inline void load_matrix_x4(std::uint32_t (&registers)[4], const void* row) {
  load_matrices<false>(registers, row);
}
inline void load_matrix_x4_transposed(std::uint32_t (&registers)[4], const void* row) {
  load_matrices<true>(registers, row);
}

// mma.m16n8k16: c[16, 8] += a[16, 16] b[16, 8]. With g = lane / 4 and t = lane % 4, register r of
// a holds row g + 8 (r % 2), columns 2 t + 8 (r / 2) and the next; register r of b holds column g,
// rows 2 t + 8 r and the next; element e of c stands at row g + 8 (e / 2), column 2 t + e % 2.
struct MmaArgument {
  float* c;
  const std::uint32_t* a;
  std::uint32_t b[2];
};

template <class T>
inline float half_of(std::uint32_t pair, int which) {
  return to_float(T{static_cast<std::uint16_t>(pair >> 16 * which)});
}

template <class T>
inline void complete_mma(void** lanes) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& from = *static_cast<const MmaArgument*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int e = 0; e < 8; ++e) {
      a[g + 8 * (e / 2 % 2)][2 * t + 8 * (e / 4) + e % 2] = half_of<T>(from.a[e / 2], e % 2);
    }
    for (int e = 0; e < 4; ++e) {
      b[2 * t + 8 * (e / 2) + e % 2][g] = half_of<T>(from.b[e / 2], e % 2);
    }
  }
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const auto& to = *static_cast<const MmaArgument*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int e = 0; e < 4; ++e) {
      const int row = g + 8 * (e / 2), column = 2 * t + e % 2;
      for (int k = 0; k < 16; ++k) to.c[e] += a[row][k] * b[k][column];
    }
  }
}

template <class T>
inline void mma(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1) {
  MmaArgument mine{c, a, {b0, b1}};
  emulator::current_block().collective("mma.m16n8k16", &mine, &complete_mma<T>);
}

template <class Params>
tc_status launch(void (*kernel)(Params), std::int64_t blocks, int threads, int shared_bytes,
                 void* /*stream*/, const Params& params) {
  struct Closure {
    void (*kernel)(Params);
    const Params* params;
  } closure{kernel, &params};
  auto call = [](const void* opaque) {
    const auto* self = static_cast<const Closure*>(opaque);
    self->kernel(*self->params);
  };
  const emulator::Launch what{static_cast<unsigned>(blocks), static_cast<unsigned>(threads),
                              static_cast<std::size_t>(shared_bytes), call, &closure};
  return emulator::run_launch(what) ? TC_OK : TC_LAUNCH_FAILED;
}

inline tc_status copy_on_device(void* to, const void* from, std::size_t bytes, void* /*stream*/) {
  std::memcpy(to, from, bytes);
  return TC_OK;
}

}  // namespace tc

#endif  // TC_DEVICE_CUH
