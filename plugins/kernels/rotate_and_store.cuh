// SPDX-License-Identifier: Apache-2.0
//
// One pass over new queries, keys and values: q and k are rotated by the fractional position
// P = n + gamma T, and k and v are put into the cache. Three ops are this kernel:
//
//   TcDualRope            no keys or values (K = 0)
//   writing the cache     no queries and nothing to rotate (H = 0, R = 0)
//   both in one pass      the fused form
//
// Legend: B batch, H query heads, K key/value heads, S tokens, C cache rows, D channels of a head,
// R half of the rotated channels. Channel c < R pairs with c + R; those from 2 R on pass through.
//
// A thread owns `Width` neighbouring pairs (or passing channels) of one token, and takes their
// sines and cosines, which are the same for every head, through up to kHeads heads.

#ifndef TC_ROTATE_AND_STORE_CUH
#define TC_ROTATE_AND_STORE_CUH

#include <cmath>

#include "device.cuh"

namespace tc {

template <class T>
struct RotateParams {
  const T* q;       // [B, H, S, D]
  const T* k;       // [B, K, S, D]
  const T* v;       // [B, K, S, D]
  T* q_rotated;     // [B, H, S, D]; may be q
  T* key_cache;     // [B, K, C, D]
  T* value_cache;   // [B, K, C, D]
  const int64_t* position_ids;  // [B, S]; n
  const int64_t* temporal_ids;  // [B, S]; T
  const int64_t* slots;         // [B, S]; a slot outside of [0, C) is not written
  const float* inv_freq;        // [R]
  int batch, q_heads, kv_heads, tokens, cache_rows, channels, half;
  float gamma, attention_factor;

  __host__ __device__ __forceinline__ int heads() const { return q_heads + 2 * kv_heads; }
};

constexpr int kRotateThreads = 256;
constexpr int kRotateHeads = 4;

// The sines and cosines of one thread's pairs.
template <int Width>
struct Turn {
  float cosine[Width], sine[Width];
};

template <int Width, class T>
__device__ __forceinline__ Turn<Width> turn_of(const RotateParams<T>& p, int64_t token,
                                               int channel) {
  const auto n = static_cast<float>(load_global(p.position_ids + token));
  const auto t = static_cast<float>(load_global(p.temporal_ids + token));
  // Rounded after each operation, as the reference does: at 10^5 tokens the last bit of a
  // position is a hundredth of a radian, and every back end has to lose the same.
  const float position = add_rounded(n, multiply_rounded(p.gamma, t));
  Turn<Width> turn;
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    const float angle = multiply_rounded(position, load_global(p.inv_freq + channel + i));
    sincosf(angle, &turn.sine[i], &turn.cosine[i]);
    turn.sine[i] *= p.attention_factor;
    turn.cosine[i] *= p.attention_factor;
  }
  return turn;
}

// Where one head of one token comes from and goes to; null where nothing is to be written.
template <class T>
struct Row {
  const T* from;
  T* to;
  bool rotates;
};

template <class T>
__device__ __forceinline__ Row<T> row_of(const RotateParams<T>& p, int batch, int head, int token,
                                         int64_t slot) {
  if (head < p.q_heads) {
    const int64_t offset =
        ((int64_t{batch} * p.q_heads + head) * p.tokens + token) * p.channels;
    return {p.q + offset, p.q_rotated + offset, true};
  }
  const bool is_key = head < p.q_heads + p.kv_heads;
  const int64_t kv_head =
      int64_t{batch} * p.kv_heads + (head - p.q_heads - (is_key ? 0 : p.kv_heads));
  const bool stored = slot >= 0 && slot < p.cache_rows;
  T* cache = is_key ? p.key_cache : p.value_cache;
  return {(is_key ? p.k : p.v) + (kv_head * p.tokens + token) * p.channels,
          stored ? cache + (kv_head * p.cache_rows + slot) * p.channels : nullptr, is_key};
}

template <int Width, class T>
__device__ __forceinline__ void rotate_pairs(const Row<T>& row, const Turn<Width>& turn,
                                             int channel, int half) {
  using Channels = Vector<T, Width>;
  const auto first = load_global(reinterpret_cast<const Channels*>(row.from + channel));
  const auto second = load_global(reinterpret_cast<const Channels*>(row.from + channel + half));
  Channels rotated_first, rotated_second;
#pragma unroll
  for (int i = 0; i < Width; ++i) {
    const float a = to_float(first.values[i]), b = to_float(second.values[i]);
    rotated_first.values[i] = from_float<T>(a * turn.cosine[i] - b * turn.sine[i]);
    rotated_second.values[i] = from_float<T>(b * turn.cosine[i] + a * turn.sine[i]);
  }
  store_global(reinterpret_cast<Channels*>(row.to + channel), rotated_first);
  store_global(reinterpret_cast<Channels*>(row.to + channel + half), rotated_second);
}

template <int Width, class T>
__device__ __forceinline__ void copy_channels(const Row<T>& row, int channel) {
  using Channels = Vector<T, Width>;
  store_global(reinterpret_cast<Channels*>(row.to + channel),
               load_global(reinterpret_cast<const Channels*>(row.from + channel)));
}

// Work items: B x head groups x S x pieces of a row, the last innermost. A piece is `Width` pairs,
// or `Width` channels that pass through.
template <class T, int Width>
__global__ void __launch_bounds__(kRotateThreads) rotate_and_store(RotateParams<T> p) {
  const int pair_pieces = p.half / Width;
  const int pieces = pair_pieces + (p.channels - 2 * p.half) / Width;
  const int groups = (p.heads() + kRotateHeads - 1) / kRotateHeads;
  int64_t item = int64_t{blockIdx.x} * kRotateThreads + threadIdx.x;
  if (item >= int64_t{p.batch} * groups * p.tokens * pieces) return;
  const int piece = item % pieces;
  item /= pieces;
  const int token = item % p.tokens;
  item /= p.tokens;
  const int first_head = item % groups * kRotateHeads;
  const int batch = item / groups;

  const int64_t token_index = int64_t{batch} * p.tokens + token;
  const int64_t slot = p.kv_heads > 0 ? load_global(p.slots + token_index) : -1;
  const bool is_pair = piece < pair_pieces;
  const int channel = is_pair ? piece * Width : 2 * p.half + (piece - pair_pieces) * Width;
  Turn<Width> turn;
  if (is_pair) turn = turn_of<Width>(p, token_index, channel);
  for (int head = first_head; head < min(first_head + kRotateHeads, p.heads()); ++head) {
    const Row<T> row = row_of(p, batch, head, token, slot);
    if (row.to == nullptr) continue;
    if (is_pair && row.rotates) {
      rotate_pairs(row, turn, channel, p.half);
    } else {
      copy_channels<Width>(row, channel);
      if (is_pair) copy_channels<Width>(row, channel + p.half);
    }
  }
}

}  // namespace tc

#endif  // TC_ROTATE_AND_STORE_CUH
