// SPDX-License-Identifier: Apache-2.0
//
// Rows of keys or values as they lie in the cache: numbers of the type T of q (a `const T*`), or
// codes in int8 with a scale for each row. Attention reads either by these functions.

#ifndef TC_CPU_CACHE_ROWS_H
#define TC_CPU_CACHE_ROWS_H

#include "simd.h"

namespace TC_ISA {

struct Int8Rows {
  const int8_t* codes;  // [rows, D]
  const float* scales;  // [rows]
};

// Row i and those after it.
template <class T>
inline const T* rows_from(const T* rows, int64_t i, int64_t D) {
  return rows + i * D;
}
inline Int8Rows rows_from(const Int8Rows& rows, int64_t i, int64_t D) {
  return {rows.codes + i * D, rows.scales + i};
}

// The first row's stored numbers; the next row's follow.
template <class T>
inline const T* stored(const T* rows) {
  return rows;
}
inline const int8_t* stored(const Int8Rows& rows) { return rows.codes; }

// What the stored numbers of row i are multiplied by.
template <class T>
inline float scale_of(const T*, int64_t) {
  return 1.0f;
}
inline float scale_of(const Int8Rows& rows, int64_t i) { return rows.scales[i]; }

// weights[i] *= the scale of row i.
template <class T>
inline void multiply_by_scales(float*, const T*, int64_t) {}
inline void multiply_by_scales(float* weights, const Int8Rows& rows, int64_t n) {
  for (int64_t i = 0; i < n; ++i) weights[i] *= rows.scales[i];
}

// A row in int8. The scale is the largest absolute number over 127; it is found among the bits,
// whose order is that of the numbers, so that a row that is not finite has such a scale.
template <class T>
inline void quantize_row(const T* row_D, int64_t D, int8_t* codes_D, float* scale) {
  constexpr uint32_t kMagnitude = 0x7fffffffu;
  constexpr float kLargestCode = 127.0f;
  BitVec largest = {};
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) {
    const BitVec magnitude = bit_cast<BitVec>(load(row_D + d)) & kMagnitude;
    largest = magnitude > largest ? magnitude : largest;
  }
  uint32_t most = 0;
  for (int lane = 0; lane < kLanes; ++lane) most = largest[lane] > most ? largest[lane] : most;
  for (; d < D; ++d) {
    const uint32_t magnitude = bit_cast<uint32_t>(load_one(row_D + d)) & kMagnitude;
    most = magnitude > most ? magnitude : most;
  }
  *scale = bit_cast<float>(most) / kLargestCode;
  const float divisor = *scale > 0.0f ? *scale : 1.0f;
  // Beside a scale that lost its digits (a subnormal number) a quotient may be larger than 127.
  const auto codes_of = [=](Vec x) {
    Vec code = x / divisor;
    code = code == code ? code : Vec{};
    code = code < kLargestCode ? code : splat(kLargestCode);
    code = code > -kLargestCode ? code : splat(-kLargestCode);
    return (code + 0x1.8p23f) - 0x1.8p23f;  // to the nearest whole number, ties to even
  };
  for (d = 0; d + kLanes <= D; d += kLanes) {
    const IntVec codes = __builtin_convertvector(codes_of(load(row_D + d)), IntVec);
    store_bits(codes_D + d, __builtin_convertvector(codes, ByteVec));
  }
  for (; d < D; ++d) {
    codes_D[d] = static_cast<int8_t>(codes_of(splat(load_one(row_D + d)))[0]);
  }
}

}  // namespace TC_ISA

#endif  // TC_CPU_CACHE_ROWS_H
