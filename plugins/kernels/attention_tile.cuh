// SPDX-License-Identifier: Apache-2.0
//
// What prefill and decode share: tiles of rows in shared memory, and one warp's work on a tile
// (scores, mask, online softmax, weighted sum of values). How tiles come from the cache is in
// tile_ring.cuh.
//
// Legend: B batch, H query heads, K key/value heads, G = H / K query heads of one key/value head,
// S tokens of this call, C cache rows, D channels of a head. A *packed row* is one query of one
// head; the G heads that share keys are packed together: packed row r is token r / G, head r % G
// of the group. So a tile of rows shares one pass over the keys whatever G is, and one kernel
// serves every ratio.
//
// Fragments are those of mma.m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16"): of a
// 16 x 8 block of accumulators a thread owns rows lane / 4 and lane / 4 + 8, columns 2 (lane % 4)
// and the next. The accumulators of two neighbouring blocks, packed to 16 bits, are exactly the
// A operand of the next product: softmax weights never leave their registers.

#ifndef TC_ATTENTION_TILE_CUH
#define TC_ATTENTION_TILE_CUH

#include <cmath>

#include "device.cuh"

namespace tc {

// The least that an SM offers to one block, over SM 80 to 121 (it is SM 86, 89 and 120).
constexpr int kSharedBytesLimit = 99 * 1024;

// All but the cache.
template <class T>
struct QueryParams {
  const T* q;             // [B, H, S, D]
  T* y;                   // [B, H, S, D]
  const int32_t* kv_end;  // [B, S]
  float* partial_sums;    // [B, K, S G, splits, D]; decode only, null for one split
  float* partial_states;  // [B, K, S G, splits, 2]: maximum and sum of each part
  int kv_heads, group, tokens, cache_rows;
  int row_blocks;     // tiles of packed rows that cover S G
  int splits;         // parts that the keys are cut into
  float scale_log2;   // scale times log2(e): softmax in powers of two
};

// Stored is the type of the cache: T too, or int8_t with scales.
template <class T, class Stored>
struct AttentionParams : QueryParams<T> {
  const Stored* keys;         // [B, K, C, D]
  const Stored* values;       // [B, K, C, D]
  const float* key_scales;    // [B, K, C]; null where Stored is T
  const float* value_scales;  // [B, K, C]; null where Stored is T
};

// Where a block stands: blockIdx.x counts row blocks (innermost), heads and batches.
struct Place {
  int batch, kv_head, row_block;
};

template <class T>
__device__ __forceinline__ Place locate(const QueryParams<T>& p, int index) {
  const int head = index / p.row_blocks;
  return {head / p.kv_heads, head % p.kv_heads, index % p.row_blocks};
}

template <int D, class T>
__device__ __forceinline__ int64_t query_offset(const QueryParams<T>& p, const Place& at,
                                                int packed_row) {
  const int token = packed_row / p.group;
  const int64_t head = int64_t{at.batch * p.kv_heads + at.kv_head} * p.group + packed_row % p.group;
  return (head * p.tokens + token) * D;
}

// How many keys a packed row sees; nothing past the last row.
template <class T>
__device__ __forceinline__ int row_end(const QueryParams<T>& p, const Place& at, int packed_row) {
  const int token = packed_row / p.group;
  if (token >= p.tokens) return 0;
  const int end = load_global(p.kv_end + int64_t{at.batch} * p.tokens + token);
  return max(0, min(end, p.cache_rows));
}

// Most and fewest keys that any of `Rows` packed rows sees. Every warp finds out for itself:
// cheaper than a barrier. Rows past the last do not count.
struct KeyRange {
  int most, fewest;
};

template <int Rows, class T>
__device__ __forceinline__ KeyRange key_range(const QueryParams<T>& p, const Place& at,
                                              int first_row) {
  KeyRange range{0, p.cache_rows};
  for (int row = first_row + threadIdx.x % kWarpSize; row < first_row + Rows; row += kWarpSize) {
    if (row >= p.tokens * p.group) break;
    const int end = row_end(p, at, row);
    range = {max(range.most, end), min(range.fewest, end)};
  }
#pragma unroll
  for (int mask = 1; mask < kWarpSize; mask *= 2) {
    range.most = max(range.most, shuffle_xor(range.most, mask));
    range.fewest = min(range.fewest, shuffle_xor(range.fewest, mask));
  }
  return range;
}

// Address of a 16-byte chunk of a row of D channels in shared memory.
//
// ldmatrix reads one chunk of eight consecutive rows at once; they must lie in different banks.
// Rows are D / 8 chunks apart, and a bank line holds eight chunks: with L the largest power of two
// (to 8) that divides D / 8, the rows fall on 8 / L places, and L rows on each. XOR with the
// row's number among those L takes them apart, for every D and without padding.
template <int D, class T>
__device__ __forceinline__ T* chunk_at(T* tile, int row, int chunk) {
  constexpr int kChunks = D / 8;
  constexpr int kLowestBit = kChunks & -kChunks;
  constexpr int kSharing = kLowestBit < 8 ? kLowestBit : 8;
  return tile + row * D + ((chunk ^ (row / (8 / kSharing) % kSharing)) * 8);
}

// Start the copies of `Rows` rows into a tile. `row_source(r)` is row r in global memory; rows at
// and past `valid_rows` become zeros, so that what lies there can never turn into a NaN.
template <int D, int Rows, int Threads, class T, class RowSource>
__device__ __forceinline__ void load_rows(T* tile, int valid_rows, RowSource row_source) {
  constexpr int kChunks = D / 8;
#pragma unroll
  for (int i = threadIdx.x; i < Rows * kChunks; i += Threads) {
    const int row = i / kChunks, chunk = i % kChunks;
    const bool valid = row < valid_rows;
    copy_async_16(chunk_at<D>(tile, row, chunk), row_source(valid ? row : 0) + chunk * 8, valid);
  }
}

// Of a thread's two rows in each of `RowTiles` blocks of 16: running maximum and sum of softmax.
// `sum` is this thread's share; the four threads of a row add theirs at the end.
template <int RowTiles>
struct SoftmaxState {
  float maximum[RowTiles][2];
  float sum[RowTiles][2];
};

// scores = queries keys^T, for 16 RowTiles rows from `first_row` and `Keys` keys from `first_key`.
template <int D, int RowTiles, int Keys, class T>
__device__ __forceinline__ void multiply_by_keys(float (&scores)[RowTiles][Keys / 8][4],
                                                 const T* queries, int first_row, const T* keys,
                                                 int first_key) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int m = 0; m < RowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < Keys / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[m][n][e] = 0.0f;
    }
  }
#pragma unroll
  for (int step = 0; step < D / 16; ++step) {
    std::uint32_t a[RowTiles][4];
#pragma unroll
    for (int m = 0; m < RowTiles; ++m) {
      const int row = first_row + m * 16 + lane % 16;
      load_matrix_x4(a[m], chunk_at<D>(queries, row, step * 2 + lane / 16));
    }
#pragma unroll
    for (int n = 0; n < Keys / 8; n += 2) {
      const int row = first_key + n * 8 + lane / 16 * 8 + lane % 8;
      std::uint32_t b[4];
      load_matrix_x4(b, chunk_at<D>(keys, row, step * 2 + lane / 8 % 2));
#pragma unroll
      for (int m = 0; m < RowTiles; ++m) {
        mma<T>(scores[m][n], a[m], b[0], b[1]);
        mma<T>(scores[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// Key `first_key` + column is hidden from a row that ends at or before it.
template <int RowTiles, int Blocks>
__device__ __forceinline__ void hide_unseen(float (&scores)[RowTiles][Blocks][4],
                                            const int (&ends)[RowTiles][2], int first_key) {
  const int first_column = first_key + threadIdx.x % 4 * 2;
#pragma unroll
  for (int m = 0; m < RowTiles; ++m) {
#pragma unroll
    for (int n = 0; n < Blocks; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        if (first_column + n * 8 + e % 2 >= ends[m][e / 2]) scores[m][n][e] = -INFINITY;
      }
    }
  }
}

// Online softmax: turn scores into weights relative to the new maximum, as operands of the next
// product, and bring the running sums to that maximum.
template <class T, int RowTiles, int Blocks, int OutputBlocks>
__device__ __forceinline__ void update_softmax(std::uint32_t (&weights)[RowTiles][Blocks / 2][4],
                                               float (&scores)[RowTiles][Blocks][4],
                                               SoftmaxState<RowTiles>& state,
                                               float (&output)[RowTiles][OutputBlocks][4],
                                               float scale_log2) {
#pragma unroll
  for (int m = 0; m < RowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float maximum = state.maximum[m][half];
#pragma unroll
      for (int n = 0; n < Blocks; ++n) {
        maximum = fmaxf(maximum, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
      }
      maximum = fmaxf(maximum, shuffle_xor(maximum, 1));
      maximum = fmaxf(maximum, shuffle_xor(maximum, 2));
      // A row that has seen nothing yet: any finite shift keeps exp2(-inf) zero, not NaN.
      const float shift = maximum == -INFINITY ? 0.0f : maximum * scale_log2;
      const float rescale = exp2_approx(state.maximum[m][half] * scale_log2 - shift);
      float sum = 0.0f;
#pragma unroll
      for (int n = 0; n < Blocks; ++n) {
        const float low = exp2_approx(scores[m][n][2 * half] * scale_log2 - shift);
        const float high = exp2_approx(scores[m][n][2 * half + 1] * scale_log2 - shift);
        sum += low + high;
        weights[m][n / 2][n % 2 * 2 + half] = pack<T>(low, high);
      }
      state.maximum[m][half] = maximum;
      state.sum[m][half] = state.sum[m][half] * rescale + sum;
#pragma unroll
      for (int n = 0; n < OutputBlocks; ++n) {
        output[m][n][2 * half] *= rescale;
        output[m][n][2 * half + 1] *= rescale;
      }
    }
  }
}

// output += weights values, for `Keys` keys from `first_key`.
template <int D, int RowTiles, int KeySteps, class T>
__device__ __forceinline__ void add_values(float (&output)[RowTiles][D / 8][4],
                                           const std::uint32_t (&weights)[RowTiles][KeySteps][4],
                                           const T* values, int first_key) {
  const int lane = threadIdx.x % kWarpSize;
#pragma unroll
  for (int step = 0; step < KeySteps; ++step) {
#pragma unroll
    for (int n = 0; n < D / 8; n += 2) {
      std::uint32_t b[4];
      const int row = first_key + step * 16 + lane % 16;
      load_matrix_x4_transposed(b, chunk_at<D>(values, row, n + lane / 16));
#pragma unroll
      for (int m = 0; m < RowTiles; ++m) {
        mma<T>(output[m][n], weights[m][step], b[0], b[1]);
        mma<T>(output[m][n + 1], weights[m][step], b[2], b[3]);
      }
    }
  }
}

// Before the first tile: nothing seen, nothing summed.
template <int RowTiles, int Blocks>
__device__ __forceinline__ void clear(SoftmaxState<RowTiles>& state,
                                      float (&output)[RowTiles][Blocks][4]) {
#pragma unroll
  for (int m = 0; m < RowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      state.maximum[m][half] = -INFINITY;
      state.sum[m][half] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < Blocks; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) output[m][n][e] = 0.0f;
    }
  }
}

// Add up the shares of the four threads that hold a row.
template <int RowTiles>
__device__ __forceinline__ void finish(SoftmaxState<RowTiles>& state) {
#pragma unroll
  for (int m = 0; m < RowTiles; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float& sum = state.sum[m][half];
      sum += shuffle_xor(sum, 1);
      sum += shuffle_xor(sum, 2);
    }
  }
}

// Two neighbouring channels of y.
template <class T>
__device__ __forceinline__ void store_pair(T* y, float first, float second) {
  store_global(reinterpret_cast<std::uint32_t*>(y), pack<T>(first, second));
}

}  // namespace tc

#endif  // TC_ATTENTION_TILE_CUH
