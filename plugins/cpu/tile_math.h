// SPDX-License-Identifier: Apache-2.0
//
// The inner loop of attention, and the forms of its operands.
//
// An Element is 32 bits of one operand along the summed axis: a float, or, where the processor has
// a bfloat16 dot product, a pair of bfloat16 numbers.

#ifndef TC_CPU_TILE_MATH_H
#define TC_CPU_TILE_MATH_H

#include <stdlib.h>

#include "simd.h"

#if defined(TC_EMULATED_AMX)
#include "emulated_amx.h"  // ../tests/cpu
#elif defined(TC_BF16_DOT)
#include <immintrin.h>
#endif

namespace TC_ISA {

// Rows of accumulators: as many as the registers hold beside two vectors of the other operand.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kBlockRows = 12;
constexpr int kAccumulators = 16;
#else
constexpr int kBlockRows = 6;
constexpr int kAccumulators = 8;
#endif

constexpr float kLowest = -3.0e38f;  // stands for minus infinity where a difference must be finite

inline Vec broadcast(float x) { return splat(x); }
inline Vec multiply_add(Vec sum, Vec a, Vec b) { return sum + a * b; }

#if defined(TC_BF16_DOT)
// Two neighbours in memory: the first in the low half. They need not lie on a 4-byte boundary.
typedef uint32_t Pair __attribute__((aligned(2), may_alias));
inline BitVec load(const Pair* from) { return load_bits<BitVec>(from); }
inline BitVec broadcast(Pair x) { return BitVec{} + x; }
inline Vec multiply_add(Vec sum, BitVec a, BitVec b) {
  return bit_cast<Vec>(
      _mm512_dpbf16_ps(bit_cast<__m512>(sum), bit_cast<__m512bh>(a), bit_cast<__m512bh>(b)));
}

// Numbers 0 and 16, 1 and 17 ... of 32.
struct PairsOfHalves {
  uint16_t from[2 * kLanes] = {};
  constexpr PairsOfHalves() {
    for (int i = 0; i < 2 * kLanes; ++i) from[i] = static_cast<uint16_t>(i / 2 + i % 2 * kLanes);
  }
};

// Rounded to bfloat16: in each lane, that of `first` in the low half and that of `second` above it.
inline BitVec narrow_to_pairs(Vec first, Vec second) {
  static constexpr PairsOfHalves kPairs{};
  const __m512bh halves = _mm512_cvtne2ps_pbh(bit_cast<__m512>(second), bit_cast<__m512>(first));
  return bit_cast<BitVec>(
      _mm512_permutexvar_epi16(load_bits<__m512i>(kPairs.from), bit_cast<__m512i>(halves)));
}
#endif

// Calls function(sums[r][j], r, j) for each accumulator. Loops over accumulators are unrolled, all
// of them, or the compiler keeps the accumulators in memory.
template <int R, int V, class Function>
inline __attribute__((always_inline)) void for_each(Vec (&sums)[R][V], const Function& function) {
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) function(sums[r][j], r, j);
  }
}

// sums[r][j] += sum over i < n of a[r * a_row + i * a_step] * b[i * b_step + lanes of vector j].
// Scores and weighted values, for many query rows and for few, are all this one product.
//
// Rows of a are reached from every third one: with a pointer or a distance for each of them, there
// would be more addresses than the processor has registers for.
template <int R, int V, class A, class B>
inline __attribute__((always_inline)) void accumulate(Vec (&sums)[R][V], const A* a, int64_t a_row,
                                                      int64_t a_step, const B* b, int64_t b_step,
                                                      int64_t n) {
  constexpr int kNear = 3;
  const A* near[(R + kNear - 1) / kNear];
#pragma GCC unroll 16
  for (int r = 0; r < R; r += kNear) near[r / kNear] = a + r * a_row;
  for (int64_t i = 0; i < n; ++i, b += b_step) {
    decltype(load(b)) right[V];
#pragma GCC unroll 16
    for (int j = 0; j < V; ++j) right[j] = load(b + j * kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const auto left = broadcast(near[r / kNear][r % kNear * a_row]);
#pragma GCC unroll 16
      for (int j = 0; j < V; ++j) sums[r][j] = multiply_add(sums[r][j], left, right[j]);
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r += kNear) near[r / kNear] += a_step;
  }
}

template <int N>
struct Count {
  static constexpr int value = N;
};

// Calls function(Count<n>{}) for an n in [1, N] that is known only now.
template <int N, class Function>
inline void with_count(int64_t n, const Function& function) {
  if (n == N) {
    function(Count<N>{});
  } else if constexpr (N > 1) {
    with_count<N - 1>(n, function);
  }
}

// Memory that is read later, and can be asked for now.
class Prefetch {
 public:
  Prefetch(const void* begin, const void* end)
      : begin_(static_cast<const char*>(begin)), end_(static_cast<const char*>(end)) {}

  // Part i of n, in whole lines.
  Prefetch part(int64_t i, int64_t n) const {
    const int64_t lines = ceil_divide(end_ - begin_, kLineBytes);
    return {begin_ + lines * i / n * kLineBytes, begin_ + lines * (i + 1) / n * kLineBytes};
  }

  // Does not wait, unless it asks for more lines at once than the processor notes down: some 20.
  void fetch() const {
    for (const char* line = begin_; line < end_; line += kLineBytes) __builtin_prefetch(line, 0, 2);
  }

 private:
  static constexpr int64_t kLineBytes = 64;

  const char* begin_;
  const char* end_;
};

// Memory of one task, 64-byte aligned; null when there is none.
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : data_(static_cast<float*>(aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64))) {}
  ~Scratch() { free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  explicit operator bool() const { return data_ != nullptr; }

  // The next `floats` numbers, on a 64-byte boundary where all sizes before are multiples of 16.
  float* take(int64_t floats) {
    float* part = data_ + taken_;
    taken_ += floats;
    return part;
  }

 private:
  float* data_;
  int64_t taken_ = 0;
};

// The floats that a part of `floats` takes with its padding.
inline int64_t padded(int64_t floats) { return ceil_divide(floats, 16) * 16; }

}  // namespace TC_ISA

#endif  // TC_CPU_TILE_MATH_H
