// SPDX-License-Identifier: Apache-2.0
//
// Attention of few query rows (decode): channels along the lanes, keys and values streamed once.
//
// This is bound by memory: each key and each value is read once for all rows of the tile, which are
// the query heads of one K/V head. Sums over channels are taken for a few keys at a time, so that
// they wait for memory and not for each other.

#ifndef TC_CPU_ATTENTION_ROWS_H
#define TC_CPU_ATTENTION_ROWS_H

#include "attention_task.h"
#include "tile_math.h"

namespace TC_ISA {

constexpr int kFewRows = 8;
constexpr int kScoreStride = kKeyBlock;  // a whole number of vectors
static_assert(kKeyBlock % kLanes == 0, "a row of scores is whole vectors");

// S[row][key] = scale * Q[row] . K[key], in units where weights are powers of two.
template <int R, class T>
inline void score_rows(float* scores, const float* queries, const T* keys, int64_t n, int64_t D,
                       float scale) {
  for (int64_t i = 0; i < n; ++i) {
    Vec sums[R] = {};
    for (int64_t d = 0; d < D; d += kLanes) {
      const Vec key = load(keys + i * D + d);
      for (int r = 0; r < R; ++r) sums[r] += load(queries + r * D + d) * key;
    }
    for (int r = 0; r < R; ++r) scores[r * kScoreStride + i] = sum_of_lanes(sums[r]) * scale;
  }
}

// O[row] += sum over keys of P[row][key] V[key].
template <int R, class T>
inline void value_rows(float* out, const float* weights, const T* values, int64_t n, int64_t D) {
  constexpr int kVectors = kAccumulators / R > 0 ? kAccumulators / R : 1;
  const auto columns = [&](int64_t d, auto vectors) {
    Vec sums[R][vectors.value];
    for_each(sums, [&](Vec& sum, int r, int j) { sum = load(out + r * D + d + j * kLanes); });
    accumulate(sums, weights, kScoreStride, 1, values + d, D, n);
    for_each(sums, [&](Vec& sum, int r, int j) { store(out + r * D + d + j * kLanes, sum); });
  };
  int64_t d = 0;
  for (; d + kVectors * kLanes <= D; d += kVectors * kLanes) columns(d, Count<kVectors>{});
  for (; d < D; d += kLanes) columns(d, Count<1>{});
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
    const Vec weight = exp2(load(scores + i) - maximum_now);
    store(scores + i, weight);
    total += weight;
  }
  for (int64_t i = n; i < kKeyBlock; ++i) {
    // The lanes past n of the last vector were counted: they hold the least power of two.
    scores[i] = 0.0f;
  }
  state.weight = state.weight * correction + sum_of_lanes(total);
  state.maximum = maximum_now;
  if (correction != 1.0f) {
    for (int64_t d = 0; d < D; d += kLanes) store(out_D + d, load(out_D + d) * correction);
  }
}

// D is a multiple of kLanes; at most kFewRows rows.
template <class T>
bool attend_rows(const tc_cpu::AttentionPlan& plan, int64_t task_index) {
  const Task<T> task(plan, task_index);
  const int64_t D = plan.args.head_dim;
  Scratch scratch(2 * padded(kFewRows * D) + kFewRows * kScoreStride);
  if (!scratch) return false;
  float* queries = scratch.take(padded(kFewRows * D));
  float* out = scratch.take(padded(kFewRows * D));
  float* scores = scratch.take(kFewRows * kScoreStride);
  RowState states[kFewRows];
  __builtin_memset(out, 0, task.rows * D * sizeof(float));
  for (int64_t r = 0; r < task.rows; ++r) convert(queries + r * D, task.query(r), D);

  with_count<kFewRows>(task.rows, [&](auto rows) {
    for (int64_t first = task.key_begin; first < task.key_end; first += kKeyBlock) {
      const int64_t n = smaller(kKeyBlock, task.key_end - first);
      score_rows<rows.value>(scores, queries, task.key + first * D, n, D, plan.args.scale * kLog2E);
      for (int r = 0; r < rows.value; ++r) {
        const int64_t visible = larger(0, smaller(n, task.ends[r] - first));
        softmax_row(states[r], scores + r * kScoreStride, out + r * D, visible, D);
      }
      value_rows<rows.value>(out, scores, task.value + first * D, n, D);
    }
  });
  for (int64_t r = 0; r < task.rows; ++r) {
    task.finish(r, out + r * D, states[r].maximum, states[r].weight);
  }
  return true;
}

}  // namespace TC_ISA

#endif  // TC_CPU_ATTENTION_ROWS_H
