// SPDX-License-Identifier: Apache-2.0
//
// Vectors of 32-bit lanes by GCC's and Clang's vector extension: one source, compiled once for each
// instruction set (isa_*.cpp), in a namespace of its own.
//
// The including file defines TC_ISA (the namespace) and TC_VECTOR_BYTES. Nothing here or in the
// other *_impl.h files may call a function template of the standard library: the linker keeps one
// copy of such a template for the whole program, and it could be the one compiled for a processor
// that this machine is not.

#ifndef TC_CPU_SIMD_H
#define TC_CPU_SIMD_H

#include <stdint.h>

namespace TC_ISA {

constexpr int kLanes = TC_VECTOR_BYTES / 4;

typedef float Vec __attribute__((vector_size(TC_VECTOR_BYTES)));
typedef int32_t IntVec __attribute__((vector_size(TC_VECTOR_BYTES)));
typedef uint32_t BitVec __attribute__((vector_size(TC_VECTOR_BYTES)));
typedef uint16_t ShortVec __attribute__((vector_size(TC_VECTOR_BYTES / 2)));
typedef int8_t ByteVec __attribute__((vector_size(TC_VECTOR_BYTES / 4)));

// 16-bit floating-point numbers as they lie in memory.
struct Half {
  uint16_t bits;
};
struct Bf16 {
  uint16_t bits;
};

template <class To, class From>
inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a bit cast keeps the size");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

template <class V>
inline V load_bits(const void* from) {
  V v;
  __builtin_memcpy(&v, from, sizeof v);
  return v;
}

template <class V>
inline void store_bits(void* to, const V& v) {
  __builtin_memcpy(to, &v, sizeof v);
}

inline Vec splat(float x) { return x - Vec{}; }
inline Vec maximum(Vec a, Vec b) { return a > b ? a : b; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

// --- 16-bit storage to float32 and back; rounding is to nearest even ---------------------------

inline Vec widen_bf16(BitVec bits) { return bit_cast<Vec>(bits << 16); }

inline BitVec narrow_bf16(Vec x) {
  const BitVec bits = bit_cast<BitVec>(x);
  const BitVec rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const BitVec quiet_nan = (bits >> 16) | 0x40u;
  return x != x ? quiet_nan : rounded;
}

inline Vec widen_half(BitVec bits) {
  // The exponent is rebased by a multiplication, which puts subnormal numbers right too.
  const Vec magnitude = bit_cast<Vec>((bits & 0x7fffu) << 13) * 0x1p112f;
  const BitVec infinite = bit_cast<BitVec>((bits & 0x7fffu) >= 0x7c00u) & 0x7f800000u;
  return bit_cast<Vec>(bit_cast<BitVec>(magnitude) | infinite | ((bits & 0x8000u) << 16));
}

inline BitVec narrow_half(Vec x) {
  const BitVec bits = bit_cast<BitVec>(x);
  const BitVec magnitude = bits & 0x7fffffffu;
  // Normal: rebase the exponent and round off 13 bits. Subnormal: adding one half makes the
  // processor round at the right bit.
  const BitVec normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const BitVec subnormal = bit_cast<BitVec>(bit_cast<Vec>(magnitude) + 0.5f) - 0x3f000000u;
  BitVec result = magnitude < 0x38800000u ? subnormal : normal;
  const BitVec infinity = BitVec{} + 0x7c00u;
  const BitVec quiet_nan = BitVec{} + 0x7e00u;
  result = magnitude >= 0x477ff000u ? infinity : result;  // 65520 and more round to infinity
  result = magnitude > 0x7f800000u ? quiet_nan : result;
  return result | ((bits >> 16) & 0x8000u);
}

inline BitVec load_shorts(const void* from) {
  return __builtin_convertvector(load_bits<ShortVec>(from), BitVec);
}

inline void store_shorts(void* to, BitVec bits) {
  store_bits(to, __builtin_convertvector(bits, ShortVec));
}

inline Vec load(const float* from) { return load_bits<Vec>(from); }
inline Vec load(const Bf16* from) { return widen_bf16(load_shorts(from)); }
inline Vec load(const int8_t* from) {
  return __builtin_convertvector(load_bits<ByteVec>(from), Vec);
}
inline Vec load(const Half* from) { return widen_half(load_shorts(from)); }

inline void store(float* to, Vec x) { store_bits(to, x); }
inline void store(Bf16* to, Vec x) { store_shorts(to, narrow_bf16(x)); }
inline void store(Half* to, Vec x) { store_shorts(to, narrow_half(x)); }

// One number at a time, for tails.
inline float load_one(const float* from) { return *from; }
inline float load_one(const int8_t* from) { return *from; }
inline float load_one(const Bf16* from) { return widen_bf16(BitVec{} + from->bits)[0]; }
inline float load_one(const Half* from) { return widen_half(BitVec{} + from->bits)[0]; }

inline void store_one(float* to, float x) { *to = x; }
inline void store_one(Bf16* to, float x) {
  to->bits = static_cast<uint16_t>(narrow_bf16(splat(x))[0]);
}
inline void store_one(Half* to, float x) {
  to->bits = static_cast<uint16_t>(narrow_half(splat(x))[0]);
}

template <class To, class From>
inline void convert(To* to, const From* from, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(to + i, load(from + i));
  for (; i < n; ++i) store_one(to + i, load_one(from + i));
}

// --- Arithmetic --------------------------------------------------------------------------------

// 2^x to 1.2e-7 of its value for x <= 127; below -126 it stays at 2^-126.
inline Vec exp2(Vec x) {
  x = maximum(x, splat(-126.0f));
  const Vec shifted = x + 0x1.8p23f;  // the low bits now hold x, rounded to an integer
  const Vec whole = shifted - 0x1.8p23f;
  const Vec fraction = x - whole;  // in [-1/2, 1/2]: Taylor's series of 2^fraction
  Vec p = splat(1.5403530e-4f);
  p = p * fraction + 1.3333558e-3f;
  p = p * fraction + 9.6181291e-3f;
  p = p * fraction + 5.5504109e-2f;
  p = p * fraction + 2.4022651e-1f;
  p = p * fraction + 6.9314718e-1f;
  p = p * fraction + 1.0f;
  const IntVec exponent = __builtin_convertvector(whole, IntVec) << 23;
  return bit_cast<Vec>(bit_cast<IntVec>(p) + exponent);
}

// A vector of Bytes bytes, and its two halves.
template <int Bytes>
struct Halves {
  typedef float Whole __attribute__((vector_size(Bytes)));
  typedef float Part __attribute__((vector_size(Bytes / 2)));
  Part low, high;
};

// Folds the lanes into one: in halves, down to four.
template <int Bytes, class Fold>
inline float fold_lanes(typename Halves<Bytes>::Whole x, const Fold& fold) {
  if constexpr (Bytes == 16) {
    return fold(fold(x[0], x[1]), fold(x[2], x[3]));
  } else {
    const auto halves = bit_cast<Halves<Bytes>>(x);
    return fold_lanes<Bytes / 2>(fold(halves.low, halves.high), fold);
  }
}

inline float sum_of_lanes(Vec x) {
  return fold_lanes<TC_VECTOR_BYTES>(x, [](auto a, auto b) { return a + b; });
}

inline float largest_of_lanes(Vec x) {
  return fold_lanes<TC_VECTOR_BYTES>(x, [](auto a, auto b) { return a > b ? a : b; });
}

}  // namespace TC_ISA

#endif  // TC_CPU_SIMD_H
