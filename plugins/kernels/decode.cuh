// SPDX-License-Identifier: Apache-2.0
//
// Attention of few query rows over many keys: the keys are what there is to share out. They are
// cut into `splits` parts, one a block, and each tile of a part into one slice a warp. All warps
// hold the same 16 packed rows (the heads of a group ride together). The warps of a block add up
// through shared memory, the blocks through the workspace, both in a fixed order: the result
// depends on the arguments only, never on which block was first.

#ifndef TC_DECODE_CUH
#define TC_DECODE_CUH

#include <algorithm>

#include "attention_tile.cuh"
#include "tile_ring.cuh"

namespace tc {

constexpr int kDecodeRows = 16;

template <int D>
struct DecodeShape {
  static constexpr int kWarps = 4;
  static constexpr int kKeysPerWarp = 16;
  static constexpr int kKeys = kWarps * kKeysPerWarp;
  static constexpr int kStages = 2;  // more blocks an SM keep more bytes on their way than stages
  static constexpr int kThreads = kWarps * kWarpSize;
  // A row of float32 sums; eight more put the eight rows of a fragment into different banks.
  static constexpr int kSumStride = D + 8;
  static constexpr int kSumBytes = kWarps * kDecodeRows * kSumStride * 4;
  static constexpr int kStateBytes = kWarps * kDecodeRows * 2 * 4;
};

template <class T, class Stored, int D, class Shape = DecodeShape<D>>
using DecodeRing = TileRing<T, Stored, D, Shape::kKeys, Shape::kThreads, Shape::kStages>;

// Sums lie where the ring was.
template <class T, class Stored, int D>
constexpr int kDecodeSharedBytes =
    kDecodeRows * D * static_cast<int>(sizeof(T)) + DecodeShape<D>::kStateBytes +
    std::max(DecodeRing<T, Stored, D>::kBytes, DecodeShape<D>::kSumBytes);

using FloatPair = Vector<float, 2>;

// The part of weight that a partial sum keeps, relative to the maximum over all parts.
__device__ __forceinline__ float part_weight(float part_maximum, float maximum, float scale_log2) {
  return part_maximum == -INFINITY ? 0.0f : exp2_approx((part_maximum - maximum) * scale_log2);
}

// Put a warp's sums and states where all threads of the block can read them.
template <int D>
__device__ __forceinline__ void share_sums(float* sums, float* states,
                                           const SoftmaxState<1>& state,
                                           const float (&output)[1][D / 8][4]) {
  using Shape = DecodeShape<D>;
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = threadIdx.x / kWarpSize * kDecodeRows + lane / 4 + half * 8;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      float* to = sums + row * Shape::kSumStride + n * 8 + lane % 4 * 2;
      store_shared(reinterpret_cast<FloatPair*>(to),
                   FloatPair{{output[0][n][half * 2], output[0][n][half * 2 + 1]}});
    }
    if (lane % 4 == 0) {
      store_shared(reinterpret_cast<FloatPair*>(states) + row,
                   FloatPair{{state.maximum[0][half], state.sum[0][half]}});
    }
  }
}

// Add the warps' shares up, and write y, or this split's part of it.
template <class T, int D>
__device__ __forceinline__ void write_rows(const QueryParams<T>& p, const Place& at, int split,
                                           const float* sums, const float* states) {
  using Shape = DecodeShape<D>;
  const int rows = p.tokens * p.group;
  for (int i = threadIdx.x; i < kDecodeRows * (D / 2); i += Shape::kThreads) {
    const int row = i / (D / 2), channel = i % (D / 2) * 2;
    const int packed_row = at.row_block * kDecodeRows + row;
    if (packed_row >= rows) break;
    FloatPair parts[Shape::kWarps];
    float maximum = -INFINITY, sum = 0.0f, first = 0.0f, second = 0.0f;
#pragma unroll
    for (int warp = 0; warp < Shape::kWarps; ++warp) {
      const auto* state = reinterpret_cast<const FloatPair*>(states) + warp * kDecodeRows + row;
      parts[warp] = load_shared(state);
      maximum = fmaxf(maximum, parts[warp].values[0]);
    }
#pragma unroll
    for (int warp = 0; warp < Shape::kWarps; ++warp) {
      const float weight = part_weight(parts[warp].values[0], maximum, p.scale_log2);
      const float* from = sums + (warp * kDecodeRows + row) * Shape::kSumStride + channel;
      const FloatPair pair = load_shared(reinterpret_cast<const FloatPair*>(from));
      sum += weight * parts[warp].values[1];
      first += weight * pair.values[0];
      second += weight * pair.values[1];
    }
    if (p.splits == 1) {
      const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
      store_pair(p.y + query_offset<D>(p, at, packed_row) + channel, first * inverse,
                 second * inverse);
      continue;
    }
    const int64_t head = int64_t{at.batch} * p.kv_heads + at.kv_head;
    const int64_t part = (head * rows + packed_row) * p.splits + split;
    store_global(reinterpret_cast<FloatPair*>(p.partial_sums + part * D + channel),
                 FloatPair{{first, second}});
    if (channel == 0) {
      store_global(reinterpret_cast<FloatPair*>(p.partial_states) + part,
                   FloatPair{{maximum, sum}});
    }
  }
}

// Two blocks an SM is what every SM holds. Said so, ptxas takes the registers that this leaves;
// left to itself it aims at 128, and spills.
template <class T, class Stored, int D>
__global__ void __launch_bounds__(DecodeShape<D>::kThreads, 2)
    decode_attention(AttentionParams<T, Stored> p) {
  using Shape = DecodeShape<D>;
  static_assert(kDecodeSharedBytes<T, Stored, D> <= kSharedBytesLimit);
  constexpr int kKeys = Shape::kKeys, kKeysPerWarp = Shape::kKeysPerWarp;
  const Place at = locate(p, blockIdx.x / p.splits);
  const int split = blockIdx.x % p.splits;
  const int first_row = at.row_block * kDecodeRows;
  const KeyRange range = key_range<kDecodeRows>(p, at, first_row);
  // Parts are cut from the keys that are seen, not from the capacity: all splits have work.
  const int all_tiles = (range.most + kKeys - 1) / kKeys;
  const int tiles_per_split = (all_tiles + p.splits - 1) / p.splits;
  const int first_tile = min(split * tiles_per_split, all_tiles);
  const int tiles = min(tiles_per_split, all_tiles - first_tile);

  T* queries = reinterpret_cast<T*>(dynamic_shared_memory());
  auto* states = reinterpret_cast<float*>(queries + kDecodeRows * D);
  auto* sums = reinterpret_cast<float*>(dynamic_shared_memory() + kDecodeRows * D * 2 +
                                        Shape::kStateBytes);
  load_rows<D, kDecodeRows, Shape::kThreads>(
      queries, p.tokens * p.group - first_row,
      [&](int row) { return p.q + query_offset<D>(p, at, first_row + row); });
  const int first_key = first_tile * kKeys;
  const int64_t head_row = int64_t{at.batch * p.kv_heads + at.kv_head} * p.cache_rows;
  DecodeRing<T, Stored, D> ring(reinterpret_cast<T*>(sums), p, head_row + first_key,
                                range.most - first_key, 2 * tiles);
  ring.start();

  const int warp_key = threadIdx.x / kWarpSize * kKeysPerWarp;
  const int thread_row = first_row + threadIdx.x % kWarpSize / 4;
  const int ends[1][2] = {{row_end(p, at, thread_row), row_end(p, at, thread_row + 8)}};
  SoftmaxState<1> state;
  float output[1][D / 8][4];
  clear(state, output);
  for (int tile = 0; tile < tiles; ++tile) {
    float scores[1][kKeysPerWarp / 8][4];
    multiply_by_keys<D, 1, kKeysPerWarp>(scores, queries, 0, ring.next(), warp_key);
    const int tile_key = first_key + tile * kKeys;
    if (tile_key + kKeys > range.fewest) hide_unseen(scores, ends, tile_key + warp_key);
    std::uint32_t weights[1][kKeysPerWarp / 16][4];
    update_softmax<T>(weights, scores, state, output, p.scale_log2);
    add_values<D>(output, weights, ring.next(), warp_key);
  }
  wait_copies<0>();
  finish(state);

  __syncthreads();  // the sums lie where the ring was
  share_sums<D>(sums, states, state, output);
  __syncthreads();
  write_rows<T, D>(p, at, split, sums, states);
}

// Add the splits of one packed row up, in their order.
constexpr int kMergeThreads = 64;

template <class T, int D>
__global__ void __launch_bounds__(kMergeThreads) merge_splits(QueryParams<T> p) {
  const int rows = p.tokens * p.group;
  const int head = blockIdx.x / rows, packed_row = blockIdx.x % rows;
  const int64_t first_part = int64_t{blockIdx.x} * p.splits;
  const auto* states = reinterpret_cast<const FloatPair*>(p.partial_states) + first_part;
  float maximum = -INFINITY, sum = 0.0f;
  for (int split = 0; split < p.splits; ++split) {
    maximum = fmaxf(maximum, load_global(states + split).values[0]);
  }
  for (int split = 0; split < p.splits; ++split) {
    const FloatPair state = load_global(states + split);
    sum += part_weight(state.values[0], maximum, p.scale_log2) * state.values[1];
  }
  const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
  const Place at{head / p.kv_heads, head % p.kv_heads, 0};
  for (int channel = threadIdx.x * 2; channel < D; channel += kMergeThreads * 2) {
    float first = 0.0f, second = 0.0f;
    for (int split = 0; split < p.splits; ++split) {
      const float weight =
          part_weight(load_global(states + split).values[0], maximum, p.scale_log2);
      const float* from = p.partial_sums + (first_part + split) * D + channel;
      const FloatPair pair = load_global(reinterpret_cast<const FloatPair*>(from));
      first += weight * pair.values[0];
      second += weight * pair.values[1];
    }
    store_pair(p.y + query_offset<D>(p, at, packed_row) + channel, first * inverse,
               second * inverse);
  }
}

}  // namespace tc

#endif  // TC_DECODE_CUH
