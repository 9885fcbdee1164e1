// SPDX-License-Identifier: Apache-2.0
//
// The storage types of tensors, and a vector of them that is read and written in one access.

#ifndef TC_TYPES_CUH
#define TC_TYPES_CUH

#include <cstdint>

namespace tc {

struct Half {
  std::uint16_t bits;
};

struct BFloat16 {
  std::uint16_t bits;
};

template <class T, int N>
struct alignas(sizeof(T) * N) Vector {
  T values[N];
};

}  // namespace tc

#endif  // TC_TYPES_CUH
