// SPDX-License-Identifier: Apache-2.0
//
// float16 and bfloat16 on the host, through float32, rounding to nearest even.
#ifndef TC_TESTS_HALF_H
#define TC_TESTS_HALF_H

#include <cmath>
#include <cstdint>
#include <cstring>

#include "tc_kernels.h"

namespace tc_test {

inline float FromHalf(uint16_t bits) {
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 1023;
  const float size = exponent == 0 ? std::ldexp(float(fraction), -24)
                                   : std::ldexp(float(1024 + fraction), exponent - 25);
  return bits & 0x8000 ? -size : size;
}

// For finite values in the range of float16.
inline uint16_t ToHalf(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (size < std::ldexp(1.0f, -14)) {
    return sign | uint16_t(std::nearbyint(std::ldexp(size, 24)));
  }
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // in [0.5, 1)
  const int rounded = int(std::nearbyint(std::ldexp(fraction, 11))) - 1024;
  return sign | uint16_t(((exponent + 14) << 10) + rounded);
}

inline float FromBfloat(uint16_t bits) {
  const uint32_t word = uint32_t(bits) << 16;
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

inline uint16_t ToBfloat(float value) {
  uint32_t word;
  std::memcpy(&word, &value, sizeof word);
  return uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

inline float Load(tc_dtype dtype, uint16_t bits) {
  return dtype == TC_BFLOAT16 ? FromBfloat(bits) : FromHalf(bits);
}

inline uint16_t Store(tc_dtype dtype, float value) {
  return dtype == TC_BFLOAT16 ? ToBfloat(value) : ToHalf(value);
}

}  // namespace tc_test

#endif  // TC_TESTS_HALF_H
