// SPDX-License-Identifier: Apache-2.0
//
// What the tests of the kernels share: counting failures, numbers of 16 bits, and tensors that the
// emulator guards.

#ifndef TC_TESTS_CHECK_H
#define TC_TESTS_CHECK_H

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "tc_emulator.h"
#include "tc_kernels.h"

inline int failures = 0;

// Print a failure and count it.
inline void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));
inline void fail(const char* format, ...) {
  failures++;
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
}

struct Schedule {
  const char* name;
  tc_schedule order;
  std::uint64_t seed;
};

constexpr Schedule kSchedules[] = {{"forward", TC_SCHEDULE_FORWARD, 0},
                                   {"reverse", TC_SCHEDULE_REVERSE, 0},
                                   {"random 1", TC_SCHEDULE_RANDOM, 1},
                                   {"random 2", TC_SCHEDULE_RANDOM, 2}};

// Half of the distance between 1 and the next larger number.
inline double unit_roundoff(tc_dtype dtype) {
  return std::ldexp(1.0, dtype == TC_FLOAT16 ? -11 : dtype == TC_BFLOAT16 ? -8 : -24);
}

inline std::size_t bytes_of(tc_dtype dtype) { return dtype == TC_FLOAT32 ? 4 : 2; }

// In C++, GCC has _Float16 on aarch64 from 13 on.
#if defined(__aarch64__)
using CompilerHalf = __fp16;
#else
using CompilerHalf = _Float16;
#endif

// A tensor of any of the three types, on the heap at exactly its size, 16-byte aligned.
class Tensor {
 public:
  Tensor(tc_dtype dtype, std::size_t size) : dtype_(dtype), size_(size) {
    const std::size_t bytes = size * bytes_of(dtype);
    if (posix_memalign(&data_, 64, bytes) != 0) std::abort();
    std::memset(data_, 0xFF, bytes);  // a NaN everywhere
  }
  Tensor(const Tensor& other) : Tensor(other.dtype_, other.size_) {
    std::memcpy(data_, other.data_, bytes());
  }
  Tensor& operator=(const Tensor& other) {
    std::memcpy(data_, other.data_, bytes());
    return *this;
  }
  ~Tensor() { std::free(data_); }

  double get(std::size_t i) const {
    if (dtype_ == TC_FLOAT32) return static_cast<const float*>(data_)[i];
    if (dtype_ == TC_FLOAT16) return static_cast<const CompilerHalf*>(data_)[i];
    const std::uint32_t wide = std::uint32_t{static_cast<const std::uint16_t*>(data_)[i]} << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
  void set(std::size_t i, float value) {
    if (dtype_ == TC_FLOAT32) {
      static_cast<float*>(data_)[i] = value;
    } else if (dtype_ == TC_FLOAT16) {
      static_cast<CompilerHalf*>(data_)[i] = static_cast<CompilerHalf>(value);
    } else {  // truncation: any number of the type will do
      std::uint32_t wide;
      std::memcpy(&wide, &value, sizeof wide);
      static_cast<std::uint16_t*>(data_)[i] = static_cast<std::uint16_t>(wide >> 16);
    }
  }
  void randomise(std::mt19937& random) {
    std::normal_distribution<float> normal;
    for (std::size_t i = 0; i < size_; ++i) set(i, normal(random));
  }
  bool same_bits(const Tensor& other) const {
    return bytes() == other.bytes() && std::memcmp(data_, other.data_, bytes()) == 0;
  }
  void declare(bool writable) const { tc_emulator_declare_memory(data_, bytes(), writable); }

  void* data() { return data_; }
  const void* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::size_t bytes() const { return size_ * bytes_of(dtype_); }

 private:
  tc_dtype dtype_;
  std::size_t size_;
  void* data_ = nullptr;
};

template <class V>
void declare(const std::vector<V>& values) {
  tc_emulator_declare_memory(values.data(), values.size() * sizeof(V), 0);
}

// True when the launch went well and the kernel kept the rules.
inline bool went_well(tc_status status, const char* what) {
  if (status == TC_OK) return true;
  fail("%s: status %d: %s", what, status, tc_emulator_violation());
  return false;
}

#endif  // TC_TESTS_CHECK_H
