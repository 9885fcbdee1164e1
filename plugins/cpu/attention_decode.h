// SPDX-License-Identifier: Apache-2.0
//
// Attention of few query rows (decode): channels along the lanes, keys and values streamed once.
//
// This is bound by memory: each key and each value is read once for all rows of the tile, which are
// the query heads of one K/V head. Sums over channels are taken for a few keys at a time, so that
// they wait for memory and not for each other.

#ifndef TC_CPU_ATTENTION_DECODE_H
#define TC_CPU_ATTENTION_DECODE_H

#include "attention_task.h"
#include "tile_math.h"

namespace TC_ISA {

constexpr int kMostDecodeRows = 8;
static_assert(kAccumulators >= kMostDecodeRows, "at least one vector of channels a row");
constexpr int kScoreStride = kKeyBlock;  // a whole number of vectors
static_assert(kKeyBlock % kLanes == 0, "a row of scores is whole vectors");

// Asks for a row of channels before it is wanted. Narrower types are slower with it: widening
// them takes the time in which they come.
inline void prefetch(const float* row_D, int64_t D) {
  Prefetch(row_D, row_D + D).fetch();
}
template <class T>
inline void prefetch(const T*, int64_t) {}

// S[row][key] = scale * Q[row] . K[key], in units where weights are powers of two. The block's
// values, which come next, are fetched on the way: a memory that waits is time lost.
template <int R, class Rows>
inline void score_rows(float* scores, const float* queries, const Rows& keys, const Rows& values,
                       int64_t n, int64_t D, float scale) {
  for (int64_t i = 0; i < n; ++i) {
    prefetch(stored(values) + i * D, D);
    Vec sums[R] = {};
    for (int64_t d = 0; d < D; d += kLanes) {
      const Vec key = load(stored(keys) + i * D + d);
      for (int r = 0; r < R; ++r) sums[r] += load(queries + r * D + d) * key;
    }
    const float factor = scale * scale_of(keys, i);
    for (int r = 0; r < R; ++r) scores[r * kScoreStride + i] = sum_of_lanes(sums[r]) * factor;
  }
}

// O[row] += sum over keys of P[row][key] V[key], from channel d on: V vectors of channels at once,
// which are read from memory one key after the other, then the rest in halves of that.
template <int R, int V, class T>
inline void value_rows(float* out, const float* weights, const T* values, int64_t n, int64_t D,
                       int64_t d) {
  for (; d + V * kLanes <= D; d += V * kLanes) {
    Vec sums[R][V];
    for_each(sums, [&](Vec& sum, int r, int j) { sum = load(out + r * D + d + j * kLanes); });
    accumulate(sums, weights, kScoreStride, 1, values + d, D, n);
    for_each(sums, [&](Vec& sum, int r, int j) { store(out + r * D + d + j * kLanes, sum); });
  }
  if constexpr (V > 1) value_rows<R, V / 2>(out, weights, values, n, D, d);
}

// The running softmax of one row.
struct RowState {
  float maximum = kLowest;
  float weight = 0.0f;
};

// Scores of the n keys that the row sees become weights; those of the rest of the block, zero.
inline void softmax_row(RowState& state, float* scores, float* out_D, int64_t n, int64_t D) {
  for (int64_t i = n; i < kKeyBlock; ++i) scores[i] = kLowest;
  Vec maxima = splat(state.maximum);
  for (int64_t i = 0; i < n; i += kLanes) maxima = maximum(maxima, load(scores + i));
  const float maximum_now = largest_of_lanes(maxima);
  const float correction = exp2(splat(state.maximum - maximum_now))[0];
  Vec total = Vec{};
  for (int64_t i = 0; i < n; i += kLanes) {
    // Lanes past n count 2^-126 beside a sum of at least one: nothing.
    const Vec weight = exp2(load(scores + i) - maximum_now);
    store(scores + i, weight);
    total += weight;
  }
  for (int64_t i = n; i < kKeyBlock; ++i) scores[i] = 0.0f;
  state.weight = state.weight * correction + sum_of_lanes(total);
  state.maximum = maximum_now;
  if (correction != 1.0f) {
    for (int64_t d = 0; d < D; d += kLanes) store(out_D + d, load(out_D + d) * correction);
  }
}

// R rows, of which the last ones may be there only to fill up.
template <int R, class T, class Rows>
bool attend_decode_rows(const Task<T, Rows>& task) {
  const tc_cpu::AttentionPlan& plan = task.plan;
  const int64_t D = plan.args.head_dim;
  Scratch scratch(2 * R * D + R * kScoreStride);
  if (!scratch) return false;
  float* queries = scratch.take(R * D);
  float* out = scratch.take(R * D);
  float* scores = scratch.take(R * kScoreStride);
  RowState states[R];
  __builtin_memset(queries, 0, R * D * sizeof(float));
  __builtin_memset(out, 0, R * D * sizeof(float));
  for (int64_t r = 0; r < task.rows; ++r) convert(queries + r * D, task.query(r), D);

  for (int64_t first = task.key_begin; first < task.key_end; first += kKeyBlock) {
    const int64_t n = smaller(kKeyBlock, task.key_end - first);
    const Rows keys = rows_from(task.key, first, D), values = rows_from(task.value, first, D);
    score_rows<R>(scores, queries, keys, values, n, D, plan.args.scale * kLog2E);
    for (int64_t r = 0; r < task.rows; ++r) {
      const int64_t visible = larger(0, smaller(n, task.ends[r] - first));
      softmax_row(states[r], scores + r * kScoreStride, out + r * D, visible, D);
      multiply_by_scales(scores + r * kScoreStride, values, visible);
    }
    value_rows<R, kAccumulators / R>(out, scores, stored(values), n, D, 0);
  }
  for (int64_t r = 0; r < task.rows; ++r) {
    task.finish(r, out + r * D, states[r].maximum, states[r].weight);
  }
  return true;
}

// At most kMostDecodeRows rows; D is a multiple of kLanes.
template <class T, class Rows = const T*>
bool attend_decode(const tc_cpu::AttentionPlan& plan, int64_t task_index) {
  const Task<T, Rows> task(plan, task_index);
  if (task.rows == 1) return attend_decode_rows<1>(task);
  if (task.rows == 2) return attend_decode_rows<2>(task);
  return task.rows <= 4 ? attend_decode_rows<4>(task) : attend_decode_rows<kMostDecodeRows>(task);
}

}  // namespace TC_ISA

#endif  // TC_CPU_ATTENTION_DECODE_H
