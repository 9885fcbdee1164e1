// SPDX-License-Identifier: Apache-2.0
//
// Attention of many query rows: FlashAttention-2's forward pass (arXiv 2307.08691) with a prefix
// mask. A block owns a tile of packed rows of one key/value head and walks over the keys; each
// warp owns 16 or 32 of the rows. The mask is one integer a row: tiles at and past the largest
// are never loaded, and tiles before the smallest are not masked.

#ifndef TC_PREFILL_CUH
#define TC_PREFILL_CUH

#include "attention_tile.cuh"
#include "tile_ring.cuh"

namespace tc {

// Tile sizes. 32 rows a warp use each fragment of K and V twice, which halves the traffic from
// shared memory; at D = 256 the accumulators leave registers for 16 rows only. Shared memory
// stays below half of an SM 86's where that is possible, so that two blocks run on each.
template <int D>
struct PrefillShape {
  static constexpr int kRowTiles = D <= 128 ? 2 : 1;
  static constexpr int kWarps = D <= 128 ? 4 : 8;
  static constexpr int kKeys = D <= 80 ? 64 : 32;
  static constexpr int kStages = D == 64 || D == 96 ? 4 : 2;
  static constexpr int kThreads = kWarps * kWarpSize;
  static constexpr int kRows = kWarps * kRowTiles * 16;
};

template <class T, class Stored, int D, class Shape = PrefillShape<D>>
using PrefillRing = TileRing<T, Stored, D, Shape::kKeys, Shape::kThreads, Shape::kStages>;

template <class T, class Stored, int D>
constexpr int kPrefillSharedBytes =
    PrefillShape<D>::kRows * D * static_cast<int>(sizeof(T)) + PrefillRing<T, Stored, D>::kBytes;

template <class T, class Stored, int D>
__global__ void __launch_bounds__(PrefillShape<D>::kThreads)
    prefill_attention(AttentionParams<T, Stored> p) {
  using Shape = PrefillShape<D>;
  static_assert(kPrefillSharedBytes<T, Stored, D> <= kSharedBytesLimit);
  constexpr int kRowTiles = Shape::kRowTiles, kKeys = Shape::kKeys;
  // The last tiles of rows see the most keys: they start first.
  const Place at = locate(p, gridDim.x - 1 - blockIdx.x);
  const int first_row = at.row_block * Shape::kRows;
  const KeyRange range = key_range<Shape::kRows>(p, at, first_row);
  const int tiles = (range.most + kKeys - 1) / kKeys;

  T* queries = reinterpret_cast<T*>(dynamic_shared_memory());
  load_rows<D, Shape::kRows, Shape::kThreads>(
      queries, p.tokens * p.group - first_row,
      [&](int row) { return p.q + query_offset<D>(p, at, first_row + row); });
  const int64_t head_row = int64_t{at.batch * p.kv_heads + at.kv_head} * p.cache_rows;
  PrefillRing<T, Stored, D> ring(queries + Shape::kRows * D, p, head_row, range.most, 2 * tiles);
  ring.start();

  const int warp_row = threadIdx.x / kWarpSize * kRowTiles * 16;
  const int thread_row = warp_row + threadIdx.x % kWarpSize / 4;
  int ends[kRowTiles][2];
#pragma unroll
  for (int i = 0; i < kRowTiles * 2; ++i) {
    ends[i / 2][i % 2] = row_end(p, at, first_row + thread_row + i * 8);
  }

  SoftmaxState<kRowTiles> state;
  float output[kRowTiles][D / 8][4];
  clear(state, output);
  for (int tile = 0; tile < tiles; ++tile) {
    float scores[kRowTiles][kKeys / 8][4];
    multiply_by_keys<D, kRowTiles, kKeys>(scores, queries, warp_row, ring.next(), 0);
    if ((tile + 1) * kKeys > range.fewest) hide_unseen(scores, ends, tile * kKeys);
    std::uint32_t weights[kRowTiles][kKeys / 16][4];
    update_softmax<T>(weights, scores, state, output, p.scale_log2);
    add_values<D>(output, weights, ring.next(), 0);
  }
  wait_copies<0>();

  finish(state);
#pragma unroll
  for (int i = 0; i < kRowTiles * 2; ++i) {
    const int row = first_row + thread_row + i * 8;
    if (row >= p.tokens * p.group) continue;
    const float sum = state.sum[i / 2][i % 2];
    const float inverse = sum == 0.0f ? 0.0f : 1.0f / sum;
    T* y = p.y + query_offset<D>(p, at, row) + threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      const float* pair = &output[i / 2][n][i % 2 * 2];
      store_pair(y + n * 8, pair[0] * inverse, pair[1] * inverse);
    }
  }
}

}  // namespace tc

#endif  // TC_PREFILL_CUH
