// SPDX-License-Identifier: Apache-2.0
//
// New keys and values are rounded to int8 and put into the cache. A warp has a row: it looks for
// the largest absolute number, over 127 the scale, and then writes the codes.
//
// Legend: B batch, K key/value heads, S tokens, C cache rows, D channels of a head.

#ifndef TC_STORE_INT8_CUH
#define TC_STORE_INT8_CUH

#include "device.cuh"

namespace tc {

template <class T>
struct StoreInt8Params {
  const T* k;            // [B, K, S, D]
  const T* v;            // [B, K, S, D]
  const int64_t* slots;  // [B, S]; a slot outside of [0, C) is not written
  int8_t* keys;          // [B, K, C, D]
  int8_t* values;        // [B, K, C, D]
  float* key_scales;     // [B, K, C]
  float* value_scales;   // [B, K, C]
  int batch, kv_heads, tokens, cache_rows, channels;
};

constexpr int kStoreWarps = 8;
constexpr int kLargestCode = 127;

// The largest absolute number of a row, which all lanes get. The bits of numbers without a sign are
// in the order of the numbers, and what is not finite comes last: so it is not lost.
template <class T>
__device__ __forceinline__ float largest_of(const T* row, int channels) {
  std::uint32_t largest = 0;
  for (int c = threadIdx.x % kWarpSize; c < channels; c += kWarpSize) {
    largest = max(largest, float_bits(to_float(load_global(row + c))) & 0x7fffffffu);
  }
#pragma unroll
  for (int mask = 1; mask < kWarpSize; mask *= 2) {
    largest = max(largest, shuffle_xor(largest, mask));
  }
  return bits_float(largest);
}

// Work items: B x K x S x {key, value}, the last innermost.
template <class T>
__global__ void __launch_bounds__(kStoreWarps* kWarpSize) store_int8(StoreInt8Params<T> p) {
  const int64_t item = int64_t{blockIdx.x} * kStoreWarps + threadIdx.x / kWarpSize;
  if (item >= int64_t{p.batch} * p.kv_heads * p.tokens * 2) return;
  const bool is_key = item % 2 == 0;
  const int64_t source = item / 2, head = source / p.tokens;
  const int64_t token = head / p.kv_heads * p.tokens + source % p.tokens;
  const int64_t slot = load_global(p.slots + token);
  if (slot < 0 || slot >= p.cache_rows) return;

  const T* row = (is_key ? p.k : p.v) + source * p.channels;
  const int64_t place = head * p.cache_rows + slot;
  int8_t* codes = (is_key ? p.keys : p.values) + place * p.channels;
  const float scale = divide_rounded(largest_of(row, p.channels), kLargestCode);
  const float divisor = scale > 0.0f ? scale : 1.0f;
  const int lane = threadIdx.x % kWarpSize;
  for (int c = lane; c < p.channels; c += kWarpSize) {
    // Beside a scale that is no number, or has lost its digits, a quotient may be larger than 127.
    const int code = nearest_integer(divide_rounded(to_float(load_global(row + c)), divisor));
    store_global(codes + c, static_cast<int8_t>(max(-kLargestCode, min(code, kLargestCode))));
  }
  if (lane == 0) store_global((is_key ? p.key_scales : p.value_scales) + place, scale);
}

}  // namespace tc

#endif  // TC_STORE_INT8_CUH
